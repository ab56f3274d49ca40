"""The scripts of `examples/inference` and `qwen2.5-vl-example`: a `psa` command with defaults of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from psa_triton.tools.cli.app import SETTINGS
from psa_triton.tools.cli.commands import Generate, ModelOptions, Understand
from psa_triton.tools.cli.errors import errors_in_one_line
from psa_triton.tools.cli.options import command


class _Script(TyperCommand):
    """A command that shows an error in one line."""

    def invoke(self, ctx: Any) -> Any:
        with errors_in_one_line(debug=False):
            return super().invoke(ctx)


def make_script(*models: str, configs: Path) -> typer.Typer:
    """The command of a script: the options of `psa generate`, dense unless asked otherwise, a new folder for each run.

    Args:
        models: keys of the models to choose from; the first is the default.
        configs: the `model_configs.py` that holds the settings people edit.
    """
    options = Generate(model=ModelOptions(model=models[0]), warm_up=True, timestamp=True)
    generate = command(options, run="generate", keys=models, configs=configs, sparse=False)
    return _script(generate, epilog=f"Models: {', '.join(models)}.")


def make_understanding_script() -> typer.Typer:
    """The command of a script: the options of `psa understand`, dense unless asked otherwise."""
    return _script(command(Understand(), run="understand", sparse=False))


def _script(function: Callable[..., None], *, epilog: str | None = None) -> typer.Typer:
    app = typer.Typer(**SETTINGS)
    app.command(cls=_Script, epilog=epilog)(function)
    return app
