"""PSA on a CPU against torch SDPA, in one run: `python benchmarks/cpu_attention.py`.

On a processor with AVX-512 everything is measured again as one without it would run it (`AVX2`), in processes that are
told so by `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2`; clock and caches stay those
of the larger processor.

Times are medians of interleaved runs. A ratio of 1 in *units of ideal* means that the sparse attention takes the dense
time multiplied by its density. Peak memory is measured in a fresh process for each case, inputs and output left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from harness import CPU, DTYPES, Report, Run, curves, heading, options, table_of

from psa_triton import PSAConfig, products, psa_attention, pyramid_attention
from psa_triton.blocks import Blocks
from psa_triton.integrations.break_even import break_even
from psa_triton.levels import levels_of, read_density
from psa_triton.tools.bench.memory import in_fresh_process, scratch_bytes
from psa_triton.tools.clock import median_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPES = {"2 x 128": (2, 128), "3 x 64": (3, 64)}
"""Heads and their channels: those of large models, and the built-in model's."""
CONFIG = PSAConfig()  # m 128, n 64, shares of density .15
ESTIMATORS = ("pooled", "sampled")


def instruction_sets() -> dict[str, dict[str, str]]:
    """Of this processor: its own, and AVX2 where that is a smaller one; with the variables that choose it."""
    own = products.instructions()
    smaller = {"AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}
    return {own: {}} | (smaller if products.has_wide_vectors() else {})


def make_inputs(shape: str, tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator, (heads, dim) = torch.Generator().manual_seed(tokens), SHAPES[shape]
    q, k, v = (torch.randn(1, heads, tokens, dim, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def measure(instructions: str, shape: str, tokens: int, dtype_name: str, repeats: int) -> dict[str, Any]:
    variables = instruction_sets()[instructions]
    with patch.dict(os.environ, variables):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            times = pool.submit(measure_times, shape, tokens, dtype_name, repeats).result()
        memory = in_fresh_process(memory_over_kv, shape, tokens, dtype_name)
    case = {"instructions": instructions, "shape": shape, "tokens": tokens, "dtype": dtype_name}
    return case | times | {"extra_memory_over_kv": memory}


def measure_times(shape: str, tokens: int, dtype_name: str, repeats: int) -> dict[str, Any]:
    dtype = DTYPES[dtype_name]
    q, k, v = make_inputs(shape, tokens, dtype)
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
        "density": density,
        "seconds": seconds,
        "speedup": seconds["dense"] / kernel,
        "kernel_in_units_of_ideal": seconds["dense"] * density / kernel,
        "operator_speedup": {e: seconds["dense"] / seconds[e] for e in ESTIMATORS},
        "auto_runs": "sparse" if tokens >= break_even(CONFIG, dtype, "cpu") else "dense",
    }


def memory_over_kv(shape: str, tokens: int, dtype_name: str) -> float | None:
    """Extra bytes of one call, as a multiple of the bytes of K and V; None where the system does not tell."""
    config, dtype = CONFIG.replace(importance="pooled"), DTYPES[dtype_name]
    psa_attention(*make_inputs(shape, 1024, dtype), config, impl="cpu")  # libraries and threads have theirs now
    q, k, v = make_inputs(shape, tokens, dtype)
    scratch = scratch_bytes(lambda: psa_attention(q, k, v, config, impl="cpu"), CPU)
    return None if scratch is None else scratch / (k.nbytes + v.nbytes)


def page(report: Report) -> str:
    """A row a length and dtype."""
    columns = {
        "instructions": "{instructions}",
        "heads": "{shape}",
        "N": "{tokens:,}",
        "dtype": "{dtype}",
        "SDPA ms": "{ms[dense]:.1f}",
        "kernel ms": "{ms[kernel]:.1f}",
        "kernel": "{speedup:.1f}x",
        "of ideal": "{kernel_in_units_of_ideal:.2f}",
        **{name: f"{{operator_speedup[{name}]:.1f}}x" for name in ESTIMATORS},
        "memory": "{memory}",
        "auto": "{auto_runs}",
    }
    rows = [
        case
        | {
            "ms": {name: 1000 * seconds for name, seconds in case["seconds"].items()},
            "memory": "-" if (memory := case["extra_memory_over_kv"]) is None else f"{memory:.2f}",
        }
        for case in report["cases"]
    ]
    density = report["cases"][-1]["density"]
    words = (
        f"m {CONFIG.block_m}, n {CONFIG.block_n}, density {density:.2f}. *kernel*: SDPA's time / the kernel's;",
        "*of ideal*: dense time x density / kernel time; *pooled*, *sampled*: SDPA's time / the whole operator's with",
        "this estimator; *memory*: extra bytes at the peak / bytes of K and V; *auto*: what an attached model runs.",
        "",
    )
    lines = [*heading(report, "PSA on the CPU", *words), *table_of(rows, columns)]
    return "\n".join([*lines, "", f"![Speed against the number of tokens]({report['picture']})", ""])


def draw(report: Report) -> Figure:
    """How many times as fast as SDPA the whole operator is, over tokens; a panel an instruction set."""
    points = [
        (
            *(f"whole operator, pooled, {case['instructions']}", f"{case['shape']}, {case['dtype']}"),
            *(case["tokens"], case["operator_speedup"]["pooled"]),
        )
        for case in report["cases"]
    ]
    return curves(points, "tokens", "times as fast as SDPA", log_y=False)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    run = Run("cpu_attention", args.output)
    cases = [
        run.piece(f"{name}, {shape}, {dtype}, {tokens} tokens", measure, name, shape, tokens, dtype, args.repeats)
        for name in instruction_sets()
        for shape in args.shapes
        for dtype in args.dtypes
        for tokens in args.tokens
    ]
    run.write({"cases": cases}, page, draw)


if __name__ == "__main__":
    main()
