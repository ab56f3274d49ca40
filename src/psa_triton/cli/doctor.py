"""`psa doctor`: what of this library runs here, and what to do about the rest."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from psa_triton.diagnosis import diagnose

_MARKS = {"ok": "ok", "optional": "-", "problem": "PROBLEM"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at packages, devices and implementations, by trying them; exit code 1 if something needed does not work."""
    findings = diagnose()
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        table = Table("", "", "", "found", "what to do")
        for row, finding in enumerate(findings):
            new = row == 0 or findings[row - 1].topic != finding.topic
            if new and row:
                table.add_section()
            topic = finding.topic if new else ""
            table.add_row(topic, finding.name, _MARKS[finding.state], finding.detail, finding.remedy)
        Console(markup=False, highlight=False).print(table)
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        typer.echo(count if problems else "All that is needed works.")
    if problems:
        raise typer.Exit(1)
