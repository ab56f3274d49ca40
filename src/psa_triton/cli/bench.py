"""`psa bench`: does PSA pay on this machine, and from how many tokens on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from psa_triton.bench import SHAPES, AttentionShape, Case, Settings, find_shape, judge, measure_scaling
from psa_triton.bench.measure import CHOICE, DENSE, FLEX, FLEX_SPARSE, KERNEL, PSA
from psa_triton.bench.report import plot, report
from psa_triton.cli.options import Device, Implementation, PresetsPath
from psa_triton.config import PSAConfig
from psa_triton.generation import choose_device, choose_dtype, surroundings
from psa_triton.generation.sidecar import write_json
from psa_triton.presets import load_presets_file

_TIMES = (DENSE, FLEX, FLEX_SPARSE, KERNEL, CHOICE, PSA)


def bench(
    shape: Annotated[str, typer.Option("--shape", help=f"One of {', '.join(SHAPES)}.")] = "wan21-720p",
    attention_preset: Annotated[
        str | None, typer.Option("--attention-preset", help="A preset of the shape's model, or SECTION/PRESET.")
    ] = None,
    config: PresetsPath = None,
    heads: Annotated[
        int | None,
        typer.Option("--heads", min=1, help="Key heads to measure; by default one on a CPU, all on a GPU."),
    ] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], typer.Option("--dtype")] = "auto",
    device: Device = "auto",
    impl: Implementation = "auto",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed rounds; the median counts.")] = 3,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="Begin no length that would take the run past this.")
    ] = 120.0,
    flex: Annotated[bool, typer.Option("--flex/--no-flex", help="Also time compiled flex_attention.")] = True,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder of bench.json and bench.png.")] = Path(
        "outputs/bench"
    ),
) -> None:
    """Time attention of a model's shape: dense, flex_attention and PSA side by side, at growing lengths.

    Queries and keys are synthetic and attend to their surroundings; tokens are in order already, as inside a model.
    """
    chosen = find_shape(shape)
    name, settings_config = _preset(chosen, attention_preset, config)
    where = choose_device(device)
    measured = chosen.with_heads(_heads(chosen, heads, where))
    settings = Settings(
        config=settings_config,
        device=where,
        dtype=choose_dtype(dtype, where),
        impl=impl,
        repeats=repeats,
        flex=flex,
        seconds=seconds,
    )
    console = Console(highlight=False, markup=False)
    cases: list[Case] = []
    with console.status("measuring 1,024 tokens") as status:
        for case in measure_scaling(measured, settings):
            cases.append(case)
            status.update(f"measured {case.tokens:,} tokens: {case.speedup:.2f} times as fast as dense")
    title = f"{measured.name}, {measured.heads} of {chosen.heads} heads x {chosen.dim}, {settings.dtype}, {name}"
    title = title.replace("torch.", "")
    console.print(_table(cases, title))
    verdict = judge(cases, measured.tokens)
    output_dir.mkdir(parents=True, exist_ok=True)
    data = report(
        measured,
        cases,
        verdict,
        preset=name,
        config=settings.config.model_dump(mode="json"),
        dtype=str(settings.dtype).removeprefix("torch."),
        repeats=repeats,
        **surroundings(where),
    )
    write_json(output_dir / "bench.json", data)
    plot(measured, cases, title, output_dir / "bench.png")
    console.print(verdict.sentence())
    console.print(f"Files: {output_dir}")


def _preset(shape: AttentionShape, preset: str | None, file: Path | None) -> tuple[str, PSAConfig]:
    """Name and configuration of the preset to measure.

    Raises:
        ValueError: there is no such preset, or it is dense.
    """
    section = shape.section
    if preset is not None and "/" in preset:
        section, _, preset = preset.partition("/")
    presets = load_presets_file(file)
    name = preset or presets.section(section).default_attention
    config = presets.preset(section, name).config()
    if config is None:
        raise ValueError(f"attention_preset: expected a sparse one to hold against dense attention, got {name}")
    return f"{section}/{name}", config


def _heads(shape: AttentionShape, asked: int | None, device: torch.device) -> int:
    if asked is None:
        return 1 if device.type == "cpu" else shape.key_heads
    if asked > shape.key_heads:
        raise ValueError(f"heads: expected 1 to {shape.key_heads}, the key heads of {shape.name}, got {asked}")
    return asked


def _table(cases: list[Case], title: str) -> Table:
    """A row a length: density, seconds of everything, speed-up and memory."""
    columns = ("tokens", "density", *(f"{name}, s" for name in _TIMES), "speed-up", "scratch sdpa / psa, MiB")
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for case in cases:
        times = (f"{case.seconds[name]:.4f}" if name in case.seconds else "-" for name in _TIMES)
        memory = " / ".join(_mebibytes(case.scratch[name]) for name in (DENSE, PSA))
        table.add_row(f"{case.tokens:,}", f"{case.density:.3f}", *times, f"{case.speedup:.2f}", memory)
    return table


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f}"
