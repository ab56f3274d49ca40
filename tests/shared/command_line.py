"""The `psa` command, run in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from psa_triton.tools.cli.app import app


def psa(*words: object, columns: int = 200) -> Result:
    """What a command line does; its words may also be paths and numbers."""
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    return CliRunner().invoke(app, [str(word) for word in words], env=environment, prog_name="psa")
