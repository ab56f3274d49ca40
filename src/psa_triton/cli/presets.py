"""`psa presets`: list, explain and check attention presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from psa_triton.config import PSAConfig
from psa_triton.presets import load_presets_file, presets_json_schema
from psa_triton.presets.explain import density_bounds, explain

presets = typer.Typer(no_args_is_help=True, help="List, explain and check attention presets.")

ConfigPath = Annotated[
    Path | None, typer.Option("--config", metavar="PATH", help="A presets file of your own instead of the shipped one.")
]


@presets.command("list")
def list_presets(config: ConfigPath = None) -> None:
    """Every model section with its presets; `*` marks the default."""
    table = Table("model", "preset", "density", "description", title="Attention presets")
    for column in table.columns[:3]:
        column.no_wrap = True
    for model, section in load_presets_file(config).sections.items():
        for row, (name, preset) in enumerate(section.attention_configs.items()):
            mark = " *" if name == section.default_attention else ""
            table.add_row("" if row else model, name + mark, _density(preset.config()), preset.description)
        table.add_section()
    Console(markup=False).print(table)


@presets.command("show")
def show_preset(
    model: Annotated[str, typer.Argument(help="A model section, as `psa presets list` shows them.")],
    preset: Annotated[str | None, typer.Argument(help="A preset of it; its default if left out.")] = None,
    config: ConfigPath = None,
) -> None:
    """What a preset does, in words, and how much work it saves."""
    file = load_presets_file(config)
    found = file.preset(model, preset)
    typer.echo(f"{model} / {preset or file.section(model).default_attention}: {found.description}")
    settings = found.config()
    if settings is None:
        typer.echo("Dense attention: every query reads every key in full. Density: 100%.")
    else:
        typer.echo("\n".join(explain(settings)))


@presets.command("validate")
def validate_presets(
    file: Annotated[Path, typer.Argument(help="The presets file to check.")],
) -> None:
    """Check a presets file; every mistake is named with its place and what is allowed there."""
    sections = load_presets_file(file).sections
    count = sum(len(section.attention_configs) for section in sections.values())
    typer.echo(f"{file}: no mistakes in {len(sections)} model sections with {count} presets")


@presets.command("schema")
def print_schema() -> None:
    """Print the JSON schema of the presets file, for editors."""
    typer.echo(json.dumps(presets_json_schema(), indent=2))


def _density(config: PSAConfig | None) -> str:
    if config is None:
        return "100%"
    low, high = density_bounds(config)
    if low == high:
        return f"{low:.1%}"
    return f"{low:.1%} to {high:.1%}" if low else f"up to {high:.1%}"
