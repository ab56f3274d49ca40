"""PSA on a CPU against torch SDPA, in one run: `python benchmarks/cpu_attention.py`.

Times are medians of interleaved runs. A ratio of 1 in *units of ideal* means that the sparse attention takes the dense
time multiplied by its density. Peak memory is measured in a fresh process for each case, inputs and output left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from harness import CPU, DTYPES, Report, Run, heading, options, table

from psa_triton import PSAConfig, psa_attention, pyramid_attention
from psa_triton.blocks import Blocks
from psa_triton.levels import levels_of, read_density
from psa_triton.tools.bench.memory import in_fresh_process, scratch_bytes
from psa_triton.tools.clock import median_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS, DIM = 2, 128
CONFIG = PSAConfig()  # m 128, n 64, shares of density .15
ESTIMATORS = ("pooled", "sampled")


def make_inputs(tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, HEADS, tokens, DIM, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def measure(tokens: int, dtype_name: str, repeats: int) -> dict[str, Any]:
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
    seconds = median_seconds(functions, repeats=repeats, device=CPU)
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
        "extra_memory_over_kv": in_fresh_process(memory_over_kv, tokens, dtype_name),
    }


def memory_over_kv(tokens: int, dtype_name: str) -> float | None:
    """Extra bytes of one call, as a multiple of the bytes of K and V; None where the system does not tell."""
    config = CONFIG.replace(importance="pooled")
    psa_attention(*make_inputs(1024, DTYPES[dtype_name]), config, impl="cpu")  # libraries and threads have theirs now
    q, k, v = make_inputs(tokens, DTYPES[dtype_name])
    scratch = scratch_bytes(lambda: psa_attention(q, k, v, config, impl="cpu"), CPU)
    return None if scratch is None else scratch / (k.nbytes + v.nbytes)


def page(report: Report) -> str:
    """A row a length and dtype."""
    rows = []
    for case in report["cases"]:
        memory, seconds = case["extra_memory_over_kv"], case["seconds"]
        shares = case["operator_share_of_kernel_speed"]
        rows.append(
            [
                f"{case['tokens']:,}",
                case["dtype"],
                f"{case['density']:.3f}",
                *(f"{seconds[name]:.3f}" for name in ("dense", "kernel")),
                f"{case['speedup']:.1f}x",
                f"{case['kernel_in_units_of_ideal']:.2f}",
                *(f"{shares[e]:.0%}" for e in ESTIMATORS),
                "-" if memory is None else f"{memory:.2f}",
            ]
        )
    columns = ["N", "dtype", "density", "SDPA s", "kernel s", "speed-up", "of ideal", *ESTIMATORS, "memory"]
    words = (
        f"{HEADS} heads x {DIM}, m {CONFIG.block_m}, n {CONFIG.block_n}. *of ideal*: dense time x density / kernel",
        "time; *pooled*, *sampled*: speed of the whole operator with this estimator / speed of the kernel alone;",
        "*memory*: extra bytes at the peak / bytes of K and V.",
        "",
    )
    lines = [*heading(report, "PSA on the CPU", *words), *table(columns, rows)]
    return "\n".join([*lines, "", f"![Time and memory]({report['picture']})", ""])


def draw(report: Report) -> Figure:
    """Left: seconds over tokens; right: memory over tokens."""
    from matplotlib.figure import Figure

    cases, figure = report["cases"], Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
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
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    run = Run("cpu_attention", args.output)
    cases = [
        run.piece(f"{dtype}, {tokens} tokens", measure, tokens, dtype, args.repeats)
        for dtype in args.dtypes
        for tokens in args.tokens
    ]
    run.write({"cases": cases}, page, draw)


if __name__ == "__main__":
    main()
