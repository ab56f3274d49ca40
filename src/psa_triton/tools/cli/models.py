"""`psa models`: the models that this library knows by name."""

from __future__ import annotations

from math import prod
from typing import Final

import typer

from psa_triton.models import MODELS, ModelSpec
from psa_triton.presets import load_presets_file
from psa_triton.presets.schema import ModelSection
from psa_triton.tools.cli.commands import Models
from psa_triton.tools.cli.console import make_console
from psa_triton.tools.cli.tables import make_table, print_table
from psa_triton.tools.shapes import default_shape

_COLUMNS: Final = ("model", "transformer", "default size", "tokens", "steps", "presets of", "default")
_SHOWN: Final = ("model", "default size", "tokens", "steps", "default")
"""What fits a terminal of 80 characters."""


def run(options: Models) -> None:
    """Show the table."""
    if options.as_markdown:
        typer.echo("\n".join(markdown()))
    else:
        shown = [_COLUMNS.index(name) for name in _SHOWN]
        rows = [[row[place] for place in shown] for row in _rows()]
        console = make_console()
        print_table(console, make_table(_SHOWN, rows, title="Known models", padding=(0, 1, 0, 0)))
        console.print("tiny-wan was run, of the others small models; all columns: --markdown")


def markdown() -> list[str]:
    """The lines of the table as the documentation has them."""
    table = [_COLUMNS, ("---",) * len(_COLUMNS), *_rows()]
    return [f"| {' | '.join(row)} |" for row in table]


def _rows() -> list[tuple[str, ...]]:
    sections = load_presets_file().sections
    return [_row(spec, sections[spec.preset_section]) for spec in MODELS.values()]


def _row(spec: ModelSpec, section: ModelSection) -> tuple[str, ...]:
    shape = default_shape(spec)
    frames = "" if spec.num_frames is None else f", {spec.num_frames} frames"
    return (
        spec.key,
        str(spec.transformer["_class_name"]).partition("Transformer")[0],
        f"{spec.width}x{spec.height}{frames}",
        "" if shape is None else f"{prod(shape.grid):,}",  # without text
        str(spec.num_inference_steps),
        spec.preset_section,
        spec.preset or section.default_attention,
    )
