"""`psa presets`: list, explain and check attention presets."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

presets = typer.Typer(no_args_is_help=True, help="List, explain and check attention presets, and begin a file of them.")

ConfigPath = Annotated[
    Path | None, typer.Option("--config", metavar="PATH", help="A presets file of your own instead of the shipped one.")
]


@presets.command("list")
def list_presets(config: ConfigPath = None) -> None:
    """Every model section with its presets; `*` marks the default."""
    # Here, and in the functions below, and not above: pydantic and rich take a while to import.
    from rich.console import Console
    from rich.table import Table

    from psa_triton.presets import load_presets_file
    from psa_triton.tools.cli.explain import density_in_words
    from psa_triton.tools.cli.tables import print_table

    table = Table("model", "preset", "density", "description", title="Attention presets, density of sparse steps")
    for model, section in load_presets_file(config).sections.items():
        for row, (name, preset) in enumerate(section.attention_configs.items()):
            mark = " *" if name == section.default_attention else ""
            table.add_row("" if row else model, name + mark, density_in_words(preset.config()), preset.description)
        table.add_section()
    print_table(Console(markup=False, emoji=False), table)


@presets.command("show")
def show_preset(
    model: Annotated[str, typer.Argument(help="A model, by its section as `psa presets list` shows them, or by key.")],
    preset: Annotated[str | None, typer.Argument(help="A preset of it; its default if left out.")] = None,
    config: ConfigPath = None,
) -> None:
    """What a preset does, in words, and how much work it saves."""
    from psa_triton.presets import resolve
    from psa_triton.tools.cli.explain import explain

    found = resolve(preset, model, config)
    typer.echo(": ".join(filter(None, (found.name.replace("/", " / "), found.description))))
    if found.config is None:
        typer.echo("Dense attention: every query reads every key in full. Density: 100%.")
    else:
        typer.echo("\n".join(explain(found.config)))


@presets.command("init")
def init_presets(
    file: Annotated[Path, typer.Argument(help="The file to write, such as my_presets.yaml.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a presets file of your own to edit: the shipped one with its comments. Use it with --config FILE."""
    from psa_triton.presets import shipped_presets
    from psa_triton.tools.files import output_folder, write_file

    shipped = shipped_presets()
    if file.exists() and (file.is_dir() or not overwrite or file.samefile(shipped)):
        raise FileExistsError(
            f"{file} is there already; name another file, or give --overwrite to replace one of yours"
        )
    content = shipped.read_bytes()
    with output_folder(file.absolute().parent, room=len(content), option="FILE"):
        write_file(file, content)
    typer.echo(
        f"{file} is the shipped file: edit it, look with `psa presets validate {shlex.quote(str(file))}`, and give "
        f"--config {shlex.quote(str(file))}"
    )


@presets.command("validate")
def validate_presets(file: Annotated[Path, typer.Argument(help="The presets file to check.")]) -> None:
    """Check a presets file; every mistake is named with its place and what is allowed there."""
    from psa_triton.presets import load_presets_file

    sections = load_presets_file(file).sections
    count = sum(len(section.attention_configs) for section in sections.values())
    typer.echo(f"{file}: no mistakes in {len(sections)} model sections with {count} presets")


@presets.command("schema")
def print_schema() -> None:
    """Print the JSON schema of the presets file, for editors."""
    from psa_triton.presets import presets_json_schema

    typer.echo(json.dumps(presets_json_schema(), indent=2))
