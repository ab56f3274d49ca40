"""PSA on a CPU against torch SDPA, in one run: `python benchmarks/cpu_attention.py`.

Times are medians of interleaved runs. A ratio of 1 in *units of ideal* means that the sparse attention takes the dense
time multiplied by its density. Peak memory is measured in a fresh process for each case, inputs and output left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from psa_triton import PSAConfig, psa_attention, pyramid_attention
from psa_triton.blocks import Blocks
from psa_triton.levels import levels_of, read_density
from psa_triton.tools.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
HEADS, DIM = 2, 128
CONFIG = PSAConfig()  # m 128, n 64, shares of density .15
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ESTIMATORS = ("pooled", "sampled")


def make_inputs(tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, HEADS, tokens, DIM, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def time_interleaved(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function; every round runs each of them once."""
    for name, function in functions.items():
        if name != "dense":  # too long to warm up, and nothing in it warms up
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(s) for name, s in seconds.items()}


def measure(tokens: int, dtype_name: str, repeats: int) -> dict[str, object]:
    q, k, v = make_inputs(tokens, DTYPES[dtype_name])
    blocks = dict(block_m=CONFIG.block_m, block_n=CONFIG.block_n)
    levels = levels_of(q, k, v, CONFIG.replace(importance="pooled"))
    density = float(read_density(levels, Blocks.of(q, k, CONFIG.block_m, CONFIG.block_n)).mean())
    functions: dict[str, Callable[[], object]] = {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "kernel": lambda: pyramid_attention(q, k, v, levels, impl="cpu", **blocks),
    }
    for estimator in ESTIMATORS:
        config = CONFIG.replace(importance=estimator)
        functions[estimator] = lambda config=config: psa_attention(q, k, v, config, impl="cpu")
    seconds = time_interleaved(functions, repeats)
    kernel = seconds["kernel"]
    return {
        "tokens": tokens,
        "dtype": dtype_name,
        "density": density,
        "seconds": seconds,
        "speedup": seconds["dense"] / kernel,
        "kernel_in_units_of_ideal": seconds["dense"] * density / kernel,
        "operator_speedup": {e: seconds["dense"] / seconds[e] for e in ESTIMATORS},
        "operator_share_of_kernel_speed": {e: kernel / seconds[e] for e in ESTIMATORS},
    }


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def measure_memory_here(tokens: int, dtype_name: str, estimator: str) -> float:
    """Extra bytes of one call in this process, as a multiple of the bytes of K and V."""
    small = make_inputs(1024, DTYPES[dtype_name])
    psa_attention(*small, CONFIG.replace(importance=estimator), impl="cpu")  # libraries and threads have theirs now
    q, k, v = make_inputs(tokens, DTYPES[dtype_name])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = peak_bytes()
    out = psa_attention(q, k, v, CONFIG.replace(importance=estimator), impl="cpu")
    return (peak_bytes() - before - out.nbytes) / (k.nbytes + v.nbytes)


def measure_memory(tokens: int, dtype_name: str, estimator: str) -> float | None:
    """`measure_memory_here` in a fresh process; None where the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--memory-of", str(tokens), dtype_name, estimator]
    # glibc keeps freed tensors for later; with this they go back at once, so that the peak is of memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def print_table(cases: list[dict], console: Console) -> None:
    table = Table(title=f"PSA on the CPU, {HEADS} heads x {DIM}, m {CONFIG.block_m}, n {CONFIG.block_n}")
    for column in (
        "N",
        "dtype",
        "density",
        "SDPA s",
        "kernel s",
        "speed-up",
        "of ideal",
        "pooled",
        "sampled",
        "memory",
    ):
        table.add_column(column, justify="right")
    for case in cases:
        share = case["operator_share_of_kernel_speed"]
        memory = case["extra_memory_over_kv"]
        table.add_row(
            str(case["tokens"]),
            case["dtype"],
            f"{case['density']:.3f}",
            f"{case['seconds']['dense']:.3f}",
            f"{case['seconds']['kernel']:.3f}",
            f"{case['speedup']:.1f}x",
            f"{case['kernel_in_units_of_ideal']:.2f}",
            *(f"{share[e]:.0%}" for e in ESTIMATORS),
            "-" if memory is None else f"{memory:.2f}",
        )
    console.print(table)
    console.print(
        "of ideal: dense time x density / kernel time; pooled, sampled: speed of the whole operator with this"
    )
    console.print("estimator / speed of the kernel alone; memory: extra bytes at the peak / bytes of K and V")


def plot(cases: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for dtype, style in zip(DTYPES, ("-", "--"), strict=True):
        chosen = [c for c in cases if c["dtype"] == dtype]
        tokens = [c["tokens"] for c in chosen]
        for what, colour in (
            ("dense", "tab:gray"),
            ("kernel", "tab:blue"),
            ("pooled", "tab:green"),
            ("sampled", "tab:orange"),
        ):
            label = {"dense": "SDPA", "kernel": "PSA kernel"}.get(what, f"PSA with {what} importance")
            left.loglog(
                tokens, [c["seconds"][what] for c in chosen], style, marker="o", color=colour, label=f"{label}, {dtype}"
            )
        memory = [c["extra_memory_over_kv"] for c in chosen]
        if None not in memory:
            right.plot(tokens, memory, style, marker="o", label=dtype)
    left.set(xlabel="tokens", ylabel="seconds", title="time")
    right.axhline(1.5, color="tab:red", linewidth=0.8, label="limit")
    right.set(
        xlabel="tokens",
        ylabel="extra memory / bytes of K and V",
        title="peak memory of the whole operator",
        ylim=(0, None),
    )
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the plot")
    parser.add_argument("--memory-of", nargs=3, metavar=("N", "DTYPE", "ESTIMATOR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        tokens, dtype, estimator = args.memory_of
        print(measure_memory_here(int(tokens), dtype, estimator))
        return
    console = Console()
    cases = []
    for dtype in args.dtypes:
        for tokens in args.tokens:
            case = measure(tokens, dtype, args.repeats)
            case["extra_memory_over_kv"] = measure_memory(tokens, dtype, "pooled")
            cases.append(case)
            console.print(f"{dtype} {tokens}: {case['kernel_in_units_of_ideal']:.2f} of ideal")
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/cpu_attention.py", *sys.argv[1:]]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    stem = f"cpu_attention_{report['date'][:10]}"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{stem}.json").write_text(json.dumps(report | {"cases": cases}, indent=2) + "\n")
    plot(cases, args.output / f"{stem}.png")
    print_table(cases, console)
    console.print(f"written: {args.output / stem}.json and .png")


if __name__ == "__main__":
    main()
