"""`psa bench`: does PSA pay on this machine, and from how many tokens on."""

from __future__ import annotations

import torch
from rich.table import Table

from psa_triton.config import PSAConfig
from psa_triton.presets import resolve
from psa_triton.tools.bench import measure
from psa_triton.tools.bench.report import judge, plot, report
from psa_triton.tools.cli.commands import Bench
from psa_triton.tools.cli.console import make_console
from psa_triton.tools.cli.tables import make_table, print_table
from psa_triton.tools.files import held, json_bytes, output_folder, staged
from psa_triton.tools.generation.loading import choose_device, choose_dtype
from psa_triton.tools.generation.sidecar import surroundings
from psa_triton.tools.shapes import AttentionShape, find_shape

_ROOM = 1 << 18
"""Bytes of the numbers and the plot, roughly."""


def run(options: Bench) -> None:
    """Measure, tell whether PSA pays, and write the figures; or tune the GPU kernels.

    Raises:
        OSError: the folder cannot be made or written, or has no room; known before the work starts.
        TakenError: another process writes into it.
        ValueError: an option is wrong, or the preset is dense.
    """
    shape, folder = find_shape(options.shape), options.output_dir
    preset = resolve(options.attention_preset, shape.section, options.preset.config)
    if (config := preset.config) is None:
        raise ValueError(f"attention_preset: expected a sparse one to hold against dense attention, got {preset.name}")
    device = choose_device(options.machine.device)
    measured = shape.with_heads(_heads(shape, options.heads, device))
    dtype = choose_dtype(options.machine.dtype, device)
    if options.tune_kernels:
        _tune_kernels(measured, config, device, dtype)
        return
    settings = measure.Settings(
        config=config,
        device=device,
        dtype=dtype,
        impl=options.preset.impl,
        repeats=options.repeats,
        flex=options.flex,
        seconds=options.seconds,
    )
    type_name = str(dtype).removeprefix("torch.")
    title = f"{measured.name}, {measured.heads} of {shape.heads} heads x {shape.dim}, {type_name}, {preset.name}"
    console = make_console()
    cases: list[measure.Case] = []
    with output_folder(folder, room=_ROOM), held(folder):
        with console.status("measuring 1,024 tokens") as status:
            for case in measure.measure_scaling(measured, settings):
                cases.append(case)
                status.update(f"measured {case.tokens:,} tokens: {case.speedup:.2f} times as fast as dense")
        print_table(console, _table(cases, title))
        verdict = judge(cases, measured.tokens)
        console.print(verdict.sentence())
        how = {"preset": preset.name, "config": config.model_dump(mode="json"), "dtype": type_name}
        data = report(measured, cases, verdict, **how, repeats=options.repeats, **surroundings(device))
        with staged() as files:
            files.write(folder / "bench.png", plot(cases, title))
            files.write(folder / "bench.json", json_bytes(data))
    console.print(f"Files: {folder}")


def _tune_kernels(shape: AttentionShape, config: PSAConfig, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda":
        raise ValueError(f"tune_kernels: expected a GPU, whose kernels are to be measured, got {device}")
    import triton.testing

    from psa_triton.gpu import current_target
    from psa_triton.tools.bench.tiles import Trial, try_tiles, write_best

    console = make_console()
    trials: list[Trial] = []
    like = torch.empty(0, dtype=dtype, device=device)
    for trial in try_tiles(
        shape, config.block_m, config.block_n, like, lambda call: triton.testing.do_bench(call) / 1e3
    ):
        trials.append(trial)
        console.print(trial.kernel, trial.tiles, "does not run" if trial.seconds is None else f"{trial.seconds:.6f} s")
    console.print(f"Table: {write_best(trials, current_target(device), dtype, shape, config.block_n)}")


def _heads(shape: AttentionShape, asked: int | None, device: torch.device) -> int:
    if asked is not None and asked > shape.key_heads:
        raise ValueError(f"heads: expected 1 to {shape.key_heads}, the key heads of {shape.name}, got {asked}")
    return asked or (1 if device.type == "cpu" else shape.key_heads)


def _table(cases: list[measure.Case], title: str) -> Table:
    """A row a length: density, seconds of everything, speed-up and memory, as far as measured; fits 80 columns."""
    timed = {
        "sdpa\ns": measure.DENSE,
        "flex\ns": measure.FLEX,
        "flex\nsparse\ns": measure.FLEX_SPARSE,
        "psa\nkernel\ns": measure.KERNEL,
        "psa\nlevels\ns": measure.CHOICE,
        "psa\ns": measure.PSA,
    }
    columns = {
        "tokens": [f"{case.tokens:,}" for case in cases],
        "density": [f"{case.density:.3f}" for case in cases],
        **{heading: [_seconds(case.seconds.get(name)) for case in cases] for heading, name in timed.items()},
        "speed-\nup": [f"{case.speedup:.2f}" for case in cases],
        "sdpa\nextra\nMiB": [_mebibytes(case.scratch[measure.DENSE]) for case in cases],
        "psa\nextra\nMiB": [_mebibytes(case.scratch[measure.PSA]) for case in cases],
    }
    shown = {heading: cells for heading, cells in columns.items() if set(cells) != {"-"}}
    rows = zip(*shown.values(), strict=True)
    return make_table(shown, rows, title=title, column={"no_wrap": True}, padding=0, show_edge=False)


def _seconds(value: float | None) -> str:
    """At most six characters for less than a day."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 10 else f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def _mebibytes(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**20:.1f}" if size < 1000 << 20 else f"{size / 2**20:.0f}"
