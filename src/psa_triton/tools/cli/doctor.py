"""`psa doctor`: what of this library runs here, and what to do about the rest."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

import typer

from psa_triton.tools.cli.commands import Doctor
from psa_triton.tools.diagnosis import Finding, diagnose

_MARKS = {"ok": "ok", "optional": "-", "problem": "PROBLEM"}
_INDENT = " " * 10
_WRAPPER = textwrap.TextWrapper(
    width=80, subsequent_indent=f"{_INDENT}  ", break_long_words=False, break_on_hyphens=False
)


def run(options: Doctor) -> None:
    """Show the findings.

    Raises:
        typer.Exit: something needed does not work.
    """
    findings = diagnose()
    problems = [finding for finding in findings if finding.state == "problem"]
    if options.as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        typer.echo("\n".join(_lines(findings)))
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        typer.echo(count if problems else "All that is needed works.")
    if problems:
        raise typer.Exit(1)


def _lines(findings: Sequence[Finding]) -> list[str]:
    """A line a finding, under its topic; what to do stands in a line of its own and is never broken, to be copied."""
    lines: list[str] = []
    for row, finding in enumerate(findings):
        if row == 0 or findings[row - 1].topic != finding.topic:
            lines += ([""] if row else []) + [finding.topic]
        mark = f"  {_MARKS[finding.state]}".ljust(len(_INDENT))
        lines += _WRAPPER.wrap(f"{mark}{finding.name}: {finding.detail}")
        if finding.remedy:
            lines.append(f"{_INDENT}  {finding.remedy}")
    return [*lines, ""]
