"""`psa bench`: does PSA pay on this machine, and from how many tokens on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from psa_triton.tools.cli.options import Device, Implementation, PresetsPath
from psa_triton.tools.shapes import SHAPES, AttentionShape, find_shape

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from psa_triton.config import PSAConfig
    from psa_triton.tools.bench import Case

_ROOM = 1 << 18
"""Bytes of the numbers and the plot, roughly."""


def bench(
    shape: Annotated[
        str,
        typer.Option(
            "--shape",
            "--model",
            help=f"One of {', '.join(SHAPES)}; or a model, by key or preset section, at its largest.",
        ),
    ] = "wan21-720p",
    attention_preset: Annotated[
        str | None, typer.Option("--attention-preset", help="A preset of the shape's model, or SECTION/PRESET.")
    ] = None,
    config: PresetsPath = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Key heads to measure; by default one on a CPU, all on a GPU.")
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
    # Here and not above: torch takes seconds to import.
    from rich.console import Console

    from psa_triton.tools.bench import Settings, judge, measure_scaling
    from psa_triton.tools.bench.report import plot, report
    from psa_triton.tools.files import Hold, output_folder, staged
    from psa_triton.tools.generation import choose_device, choose_dtype, surroundings
    from psa_triton.tools.generation.sidecar import json_bytes

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
    with output_folder(output_dir, room=_ROOM), Hold(output_dir):
        with console.status("measuring 1,024 tokens") as status:
            for case in measure_scaling(measured, settings):
                cases.append(case)
                status.update(f"measured {case.tokens:,} tokens: {case.speedup:.2f} times as fast as dense")
        title = f"{measured.name}, {measured.heads} of {chosen.heads} heads x {chosen.dim}, {settings.dtype}, {name}"
        title = title.replace("torch.", "")
        console.print(_table(cases, title))
        verdict = judge(cases, measured.tokens)
        console.print(verdict.sentence(), soft_wrap=True)
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
        with staged() as files:
            plot(measured, cases, title, output_dir / "bench.png", files.write)
            files.write(output_dir / "bench.json", json_bytes(data))
    console.print(f"Files: {output_dir}", soft_wrap=True)


def _preset(shape: AttentionShape, preset: str | None, file: Path | None) -> tuple[str, PSAConfig]:
    """Name and configuration of the preset to measure.

    Raises:
        ValueError: there is no such preset, or it is dense.
    """
    from psa_triton.presets import resolve

    found = resolve(preset, shape.section, file)
    if found.config is None:
        raise ValueError(f"attention_preset: expected a sparse one to hold against dense attention, got {found.name}")
    return found.name, found.config


def _heads(shape: AttentionShape, asked: int | None, device: torch.device) -> int:
    if asked is None:
        return 1 if device.type == "cpu" else shape.key_heads
    if asked > shape.key_heads:
        raise ValueError(f"heads: expected 1 to {shape.key_heads}, the key heads of {shape.name}, got {asked}")
    return asked


def _table(cases: list[Case], title: str) -> Table:
    """A row a length: density, seconds of everything, speed-up and memory; fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from psa_triton.tools.bench.measure import CHOICE, DENSE, FLEX, FLEX_SPARSE, KERNEL, PSA

    headings = {
        DENSE: "sdpa\ns",
        FLEX: "flex\ns",
        FLEX_SPARSE: "flex\nsparse\ns",
        KERNEL: "psa\nkernel\ns",
        CHOICE: "psa\nlevels\ns",
        PSA: "psa\ns",
    }
    timed = [name for name in headings if any(name in case.seconds for case in cases)]
    memory = {DENSE: "sdpa\nextra\nMiB", PSA: "psa\nextra\nMiB"}
    known = [name for name in memory if any(case.scratch[name] is not None for case in cases)]
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
    times = [headings[name] for name in timed]
    for column in ("tokens", "density", *times, "speed-\nup", *(memory[name] for name in known)):
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        seconds = (_seconds(case.seconds.get(name)) for name in timed)
        extra = (_mebibytes(case.scratch[name]) for name in known)
        table.add_row(f"{case.tokens:,}", f"{case.density:.3f}", *seconds, f"{case.speedup:.2f}", *extra)
    return table


def _seconds(value: float | None) -> str:
    """At most six characters for less than a day."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 10 else f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def _mebibytes(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**20:.1f}" if size < 1000 << 20 else f"{size / 2**20:.0f}"
