"""The frame of the `psa` command: its commands, option names with `_` or `-`, errors in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command as build_command

import psa_triton
from psa_triton.cli.errors import errors_in_one_line
from psa_triton.cli.presets import presets

# Their modules need torch and diffusers, which take seconds to import: each is imported when it is asked for.
# Command NAME is the function NAME of psa_triton.cli.NAME.
_HEAVY_COMMANDS = ("generate", "compare", "understand", "bench", "inspect", "tune", "doctor")

DASH_OR_UNDERSCORE = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
"""Settings of every command: option names may be written with - or _."""


class CommandGroup(TyperGroup):
    """Imports heavy commands late, and shows an error that a person can mend without its traceback.

    `ctx` is typer's own context class, whose name typer does not export.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_HEAVY_COMMANDS, *(name for name in super().list_commands(ctx) if name not in _HEAVY_COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _HEAVY_COMMANDS and cmd_name not in self.commands:
            module = import_module(f"psa_triton.cli.{cmd_name}")
            command = typer.Typer(add_completion=False)
            command.command(cmd_name)(getattr(module, cmd_name))
            self.add_command(build_command(command), cmd_name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        with errors_in_one_line(debug=ctx.params["debug"]):
            return super().invoke(ctx)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"psa-triton {psa_triton.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="psa",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings=DASH_OR_UNDERSCORE,
)
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
