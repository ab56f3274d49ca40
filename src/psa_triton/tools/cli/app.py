"""The frame of the `psa` command: its commands, option names with `_` or `-`, errors in one line."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import psa_triton
from psa_triton.tools.cli.commands import Bench, Compare, Doctor, Generate, Inspect, Models, Tune, Understand
from psa_triton.tools.cli.errors import errors_in_one_line
from psa_triton.tools.cli.options import command
from psa_triton.tools.cli.presets import presets

_NAMES = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}
SETTINGS: Any = {"add_completion": False, "pretty_exceptions_show_locals": False, "context_settings": _NAMES}
"""Of every command: option names may be written with - or _."""


class CommandGroup(TyperGroup):
    """Shows an error that a person can mend without its traceback.

    `ctx` is typer's own context class, whose name typer does not export.
    """

    def invoke(self, ctx: Any) -> Any:
        with errors_in_one_line(debug=ctx.params["debug"]):
            return super().invoke(ctx)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"psa-triton {psa_triton.__version__}")
        raise typer.Exit


app = typer.Typer(name="psa", cls=CommandGroup, no_args_is_help=True, **SETTINGS)
for options in (Generate(), Compare(), Understand(), Bench(), Inspect(), Tune(), Models(), Doctor()):
    name = type(options).__name__.lower()
    app.command(name)(command(options, run=name))
app.add_typer(presets, name="presets")


@app.callback()
def psa(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Pyramid Sparse Attention: videos from prompts, faster, by reading less important keys at lower resolution.

    Option names may be written with - or _.
    """


def main() -> None:
    """Entry point of the `psa` script."""
    app()


if __name__ == "__main__":
    main()
