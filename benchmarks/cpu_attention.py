"""PSA on a CPU against torch SDPA, in one run: `python benchmarks/cpu_attention.py`.

On a processor with AVX-512 everything is measured again as one without it would run it (`AVX2`), in processes that are
told so by `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2`; clock and caches stay those
of the larger processor.

Times are medians of interleaved runs. A ratio of 1 in *units of ideal* means that the sparse attention takes the dense
time multiplied by its density. Peak memory is measured in a fresh process for each case, inputs and output left out.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from choices import Choices
from harness import CPU, DTYPES, Report, Run, curves, heading, options, table_of

from psa_triton import PSAConfig, products, psa_attention, pyramid_attention
from psa_triton.integrations.break_even import break_even
from psa_triton.tools.bench.memory import in_fresh_process, scratch_bytes
from psa_triton.tools.clock import median_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPES = {"2 x 128": (2, 128), "3 x 64": (3, 64)}
"""Heads and their channels: those of large models, and the built-in model's."""
CONFIG = PSAConfig()  # m 128, n 64, shares of density .15
ESTIMATORS = {name: CONFIG.replace(importance=name) for name in ("pooled", "sampled")}


def instruction_sets() -> dict[str, dict[str, str]]:
    """Of this processor: its own, and AVX2 where that is a smaller one; with the variables that choose it."""
    smaller = {"AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}
    return {products.instructions(): {}} | (smaller if products.has_wide_vectors() else {})


def make_inputs(shape: str, tokens: int, dtype: str) -> list[torch.Tensor]:
    generator, (heads, dim) = torch.Generator().manual_seed(tokens), SHAPES[shape]
    return [torch.randn(1, heads, tokens, dim, generator=generator).to(DTYPES[dtype]) for _ in range(3)]


def measure(instructions: str, shape: str, dtype: str, tokens: int, repeats: int) -> dict[str, Any]:
    with patch.dict(os.environ, instruction_sets()[instructions]):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            times = pool.submit(measure_times, shape, dtype, tokens, repeats).result()
        memory = in_fresh_process(memory_over_kv, shape, dtype, tokens)
    case = {"instructions": instructions, "shape": shape, "tokens": tokens, "dtype": dtype}
    return case | times | {"extra_memory_over_kv": memory}


def measure_times(shape: str, dtype: str, tokens: int, repeats: int) -> dict[str, Any]:
    q, k, v = make_inputs(shape, tokens, dtype)
    choices = Choices(q, k, v)
    levels = choices.levels(ESTIMATORS["pooled"])
    blocks = dict(block_m=CONFIG.block_m, block_n=CONFIG.block_n)
    functions = {
        "dense": partial(F.scaled_dot_product_attention, q, k, v),
        "kernel": partial(pyramid_attention, q, k, v, levels, impl="cpu", **blocks),
        **{name: partial(psa_attention, q, k, v, config, impl="cpu") for name, config in ESTIMATORS.items()},
    }
    seconds = median_seconds(functions, repeats=repeats, device=CPU)
    density = choices.density(levels, CONFIG)
    return {
        "density": density,
        "seconds": seconds,
        "speedup": seconds["dense"] / seconds["kernel"],
        "kernel_in_units_of_ideal": seconds["dense"] * density / seconds["kernel"],
        "operator_speedup": {name: seconds["dense"] / seconds[name] for name in ESTIMATORS},
        "auto_runs": "sparse" if tokens >= break_even(CONFIG, DTYPES[dtype], "cpu") else "dense",
    }


def memory_over_kv(shape: str, dtype: str, tokens: int) -> float | None:
    """Extra bytes of one call, as a multiple of the bytes of K and V; None where the system does not tell."""
    attention = partial(psa_attention, config=ESTIMATORS["pooled"], impl="cpu")
    attention(*make_inputs(shape, 1024, dtype))  # libraries and threads have theirs now
    q, k, v = make_inputs(shape, tokens, dtype)
    scratch = scratch_bytes(partial(attention, q, k, v), CPU)
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
    density = rows[-1]["density"]
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
    title, label = "whole operator, pooled, {instructions}", "{shape}, {dtype}"
    points = [
        (title.format(**case), label.format(**case), case["tokens"], case["operator_speedup"]["pooled"])
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
        run.piece(f"{', '.join(map(str, case))} tokens", measure, *case, args.repeats)
        for case in product(instruction_sets(), args.shapes, args.dtypes, args.tokens)
    ]
    run.write({"cases": cases}, page, draw)


if __name__ == "__main__":
    main()
