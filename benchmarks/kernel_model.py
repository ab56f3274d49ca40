"""What the GPU kernels should take on an H200, from their machine code: `python benchmarks/kernel_model.py`.

Nothing here was measured. Instructions of the loops are read from code compiled for sm_90 by the Triton at hand; all
else is in `Assumptions`, one line each, for the first measurement to correct: `--set overlap=0.4 --set dense_ms=50`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from math import ceil

import triton
from compiled_kernels import DTYPES, HEADS, TOKENS, Case, Compiled, compile_kernel, forward, record_launches


@dataclass(frozen=True)
class Assumptions:
    """An H200, and Wan 720p with 12 heads of 128 dimensions at density .15, two thirds of it at level 1."""

    multiprocessors: int = 132
    gigahertz: float = 1.755
    flop_a_clock: int = 4096
    """Of a multiprocessor's matrix unit, bfloat16."""
    schedulers: int = 4
    """Of a multiprocessor; each issues an instruction a clock."""
    overlap: float = 0.0
    """How much of the shorter of products and other instructions hides behind the longer; 0.25 is the hopeful end."""
    latency: int = 700
    """Clocks until a row that a list names is there: two reads of the L2 cache, one after the other."""
    dense_ms: float = 54.0
    """Dense attention of the shape, at 650 TFLOP/s."""
    memory_tbs: float = 4.0
    """Of the 4.8 TB/s."""
    cache_tbs: float = 5.5
    """Of the L2 cache."""
    density: float = 0.15
    level_1: float = 2 / 3
    """Share of the rows that stand at level 1; the others are divided among levels 2, 4 and 8."""
    block_n: int = 64


@dataclass(frozen=True)
class Loop:
    """Clocks of a multiprocessor for one tile."""

    keys: int
    instructions: int
    issue: float
    matrix: float
    clocks: float


def loop(instructions: int, keys: int, made: Compiled, a: Assumptions) -> Loop:
    issue = instructions * made.warps / a.schedulers
    matrix = 4 * 128 * keys * made.case.dim / a.flop_a_clock
    return Loop(keys, instructions, issue, matrix, max(issue, matrix) + (1 - a.overlap) * min(issue, matrix))


def model(a: Assumptions, causal: bool) -> dict[str, object]:
    """The forward kernel and what comes before it, in milliseconds and shares of the dense time."""
    path = partial(forward, block_n=a.block_n, is_causal=causal)
    launches = record_launches(path, DTYPES["bf16"], 128, "sm_90")
    made = compile_kernel("attend", launches["attend"], Case("attend", "sm_90", "bf16", 128))
    constants = launches["attend"].constants
    full, edge = (
        loop(of.instructions, keys, made, a)
        for of, keys in zip(made.loops, (constants["TILE_N"], constants["EDGE_N"]), strict=True)
    )
    rows = a.density * TOKENS
    coarse = 3 if a.level_1 < 1 else 0
    # Of a level's rows, less than a full tile is left over, as likely any number of blocks: half of it on average, and
    # half an edge tile more for the last one, which is not full but at level 1, whose blocks fill edge tiles.
    edges = max(full.keys - a.block_n, 0) / 2 / edge.keys + coarse * (full.keys / edge.keys + 1) / 2
    tiles = max(rows - edges * edge.keys, 0) / full.keys
    clocks = tiles * full.clocks + edges * (edge.clocks + a.latency) + (1 + coarse) * 2 * a.latency
    programs = HEADS * ceil(TOKENS / 128)
    kernel_ms = clocks * ceil(programs / a.multiprocessors) / a.gigahertz / 1e6
    ideal_ms = a.density * a.dense_ms
    read = programs * rows * 2 * 128 * 2
    pooled = 2 * HEADS * TOKENS * 128 * 2 * (1 + 7 / 8)
    listed = HEADS * ceil(TOKENS / 128) * ceil(TOKENS / a.block_n) * (1 + 4)
    stages = {"pool k and v": pooled / a.memory_tbs / 1e9, "lists": listed / a.memory_tbs / 1e9}
    return {
        "triton": triton.__version__,
        "causal": causal,
        "tiles": {name: constants[name] for name in ("TILE_M", "TILE_N", "EDGE_N")} | {"warps": made.warps},
        "instructions a 128 x 64 tile": {
            "full, any level": full.instructions * 64 / full.keys,
            "edges": edge.instructions * 64 / edge.keys,
        },
        "full": asdict(full),
        "edge": asdict(edge),
        "tiles of a program": {"full": round(tiles, 1), "edges": edges},
        "kernel": {
            "ms": round(kernel_ms, 2),
            "ideal ms": round(ideal_ms, 2),
            "of ideal": round(ideal_ms / kernel_ms, 3),
            "ms, were it the L2 cache alone": round(read / a.cache_tbs / 1e9, 2),
        },
        "stages, by bytes alone": {
            name: {"ms": round(ms, 3), "of dense": round(ms / a.dense_ms, 4)} for name, ms in stages.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another assumption")
    args = parser.parse_args()
    types = {field.name: type(field.default) for field in fields(Assumptions)}
    given = dict(setting.split("=") for setting in args.set)
    if unknown := given.keys() - types.keys():
        parser.error(f"--set: expected one of {', '.join(types)}, got {', '.join(unknown)}")
    assumed = replace(Assumptions(), **{name: types[name](value) for name, value in given.items()})
    print(json.dumps({"assumptions": asdict(assumed), "models": [model(assumed, c) for c in (False, True)]}, indent=2))


if __name__ == "__main__":
    main()
