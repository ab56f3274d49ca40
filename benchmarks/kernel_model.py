"""What the GPU kernels should take on an H200, from their machine code: `python benchmarks/kernel_model.py`.

Nothing here was measured. Instructions are read from code compiled for sm_90 by the Triton at hand; all else is in
`Assumptions`, one line each, for the first measurement to correct: `--set overlap=0.4 --set dense_ms=50`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
import triton
from compiled_kernels import (
    DTYPES,
    TOKENS,
    Case,
    Compiled,
    Launches,
    compile_kernel,
    density,
    forward,
    importance,
    record_launches,
    selection,
)
from harness import table

from psa_triton.gpu import Launch

GOALS = {
    "instructions, full tiles": 330,
    "instructions, full tiles, causal": 450,
    "kernel of ideal": 0.85,
    "overhead, pooled": 0.02,
    "overhead, sampled": 0.05,
    "overhead, antidiagonal": 0.08,
}
"""At least of the ideal; at most of everything else. Instructions are for 128 queries x 64 keys."""
TRIPS = {"assign_levels": 0}
"""How often loops without products run: where there are ties at the end of a level."""


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
    """Of the 4.8 TB/s. Every tensor of a launch goes through it once."""
    issue_rate: float = 0.7
    """Instructions that a scheduler issues a clock in kernels without products."""
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


def loop(instructions: int, keys: int, macs: int, made: Compiled, a: Assumptions) -> Loop:
    """For a tile of 128 queries and `keys` keys, with `macs` multiplications for each pair of them."""
    issue = instructions * made.warps / a.schedulers
    matrix = 2 * 128 * keys * macs / a.flop_a_clock
    return Loop(keys, instructions, issue, matrix, max(issue, matrix) + (1 - a.overlap) * min(issue, matrix))


def compiled(launches: Launches, name: str) -> Compiled:
    made = compile_kernel(name, launches[name], Case(name, "sm_90", "bf16", 128))
    assert made.error is None, made.error
    return made


def recorded(path: Any, **settings: Any) -> Launches:
    return record_launches(partial(path, **settings), DTYPES["bf16"], 128, "sm_90")


def kernel(a: Assumptions, causal: bool) -> dict[str, Any]:
    """The forward kernel."""
    launches = recorded(forward, block_n=a.block_n, is_causal=causal)
    made = compiled(launches, "attend")
    constants = launches["attend"].constants
    full, edge = (
        loop(of.instructions, keys, 2 * 128, made, a)
        for of, keys in zip(made.loops, (constants["TILE_N"], constants["EDGE_N"]), strict=True)
    )
    rows = a.density * TOKENS
    coarse = 3 if a.level_1 < 1 else 0
    # Of a level's rows, less than a full tile is left over, as likely any number of blocks: half of it on average, and
    # half an edge tile more for the last one, which is not full but at level 1, whose blocks fill edge tiles.
    edges = max(full.keys - a.block_n, 0) / 2 / edge.keys + coarse * (full.keys / edge.keys + 1) / 2
    tiles = max(rows - edges * edge.keys, 0) / full.keys
    clocks = tiles * full.clocks + edges * (edge.clocks + a.latency) + (1 + coarse) * 2 * a.latency
    programs = prod(launches["attend"].grid)
    ms = clocks * ceil(programs / a.multiprocessors) / a.gigahertz / 1e6
    return {
        "instructions a 128 x 64 tile": full.instructions * 64 / full.keys,
        "of edges": edge.instructions * 64 / edge.keys,
        "full": asdict(full),
        "edge": asdict(edge),
        "tiles of a program": {"full": round(tiles, 1), "edges": edges},
        "ms": ms,
        "of ideal": a.density * a.dense_ms / ms,
        "ms, were it the L2 cache alone": programs * rows * 2 * 128 * 2 / a.cache_tbs / 1e9,
    }


def scores_ms(launch: Launch, made: Compiled, a: Assumptions) -> float:
    """Scores of a tile of query rows after the other, each against all tiles of key rows."""
    constants, (tiles, *_, columns, _, _) = launch.constants, launch.arguments["sizes"]
    row, part = constants["ROW"], constants["PART"]
    instructions = made.loops[0].instructions * (row // part)
    if row > part:  # what goes with a tile stands around the loop
        instructions += made.loops[0].around
    tile = loop(instructions, constants["TILE_N"], row, made, a)
    rounds = ceil(tiles / a.multiprocessors / made.programs) * made.programs
    return rounds * ceil(columns / constants["TILE_N"]) * tile.clocks / a.gigahertz / 1e6


def stage_ms(launches: Launches, name: str, a: Assumptions) -> float:
    """The longer of a launch's traffic and its instructions."""
    launch, made = launches[name], compiled(launches, name)
    if "score" in name:
        return scores_ms(launch, made, a)
    traffic = sum(x.numel() * x.element_size() for x in launch.values if isinstance(x, torch.Tensor))
    trips = TRIPS.get(name.rstrip("'"), 1)
    if "gather_rows" in name:  # of queries and keys it reads what it gathers
        x, gathered = launch.arguments["x"], launch.arguments["gathered"]
        traffic -= max(x.numel() - gathered.numel(), 0) * x.element_size()
        trips = launch.constants["WIDTH"]
    executed = made.instructions + (trips - 1) * sum(of.instructions for of in made.loops)
    issued = prod(launch.grid) * executed * made.warps / a.schedulers / a.issue_rate / a.multiprocessors
    return max(traffic / a.memory_tbs / 1e9, issued / a.gigahertz / 1e6)


def stages(a: Assumptions) -> dict[str, dict[str, float]]:
    """Milliseconds of what comes before the kernel, by stage and launch; importance by estimator."""
    paths = {
        "pool and lists": recorded(forward, block_n=a.block_n),
        "selection": recorded(selection, mode="thresholdbound"),
        "density": recorded(density),
    } | {method: recorded(importance, method=method) for method in ("pooled", "sampled", "antidiagonal")}
    found = {
        stage: {name: stage_ms(launches, name, a) for name in launches if name != "attend"}
        for stage, launches in paths.items()
    }
    found["pool and lists"]["pool"] *= 2  # keys, and then values
    return found


def against_goals(a: Assumptions) -> dict[str, Any]:
    full, causal = kernel(a, False), kernel(a, True)
    before = stages(a)
    always = sum(sum(before[stage].values()) for stage in ("pool and lists", "selection", "density"))
    found = {
        "instructions, full tiles": full["instructions a 128 x 64 tile"],
        "instructions, full tiles, causal": causal["instructions a 128 x 64 tile"],
        "kernel of ideal": full["of ideal"],
    } | {
        f"overhead, {method}": (always + sum(before[method].values())) / a.dense_ms
        for method in ("pooled", "sampled", "antidiagonal")
    }
    return {"found": found, "kernel": full, "kernel, causal": causal, "stages, ms": before}


def parse_arguments() -> tuple[Assumptions, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another assumption")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the assumptions and all figures here")
    args = parser.parse_args()
    types = {field.name: type(field.default) for field in fields(Assumptions)}
    given = dict(setting.split("=") for setting in args.set)
    if unknown := given.keys() - types.keys():
        parser.error(f"--set: expected one of {', '.join(types)}, got {', '.join(unknown)}")
    return replace(Assumptions(), **{name: types[name](value) for name, value in given.items()}), args.json


def main() -> None:
    assumed, file = parse_arguments()
    ends = {
        f"overlap {overlap:g}": against_goals(replace(assumed, overlap=overlap)) for overlap in (assumed.overlap, 1.0)
    }
    goals = [
        [goal, f"{value:g}", *(f"{end['found'][goal]:.3g}" for end in ends.values())] for goal, value in GOALS.items()
    ]
    stages = next(iter(ends.values()))["stages, ms"]
    times = [
        [f"{stage}: {name}", *(f"{end['stages, ms'][stage][name]:.3f}" for end in ends.values())]
        for stage, launches in stages.items()
        for name in launches
    ]
    print(*table(["", "goal", *ends], goals), "", *table(["ms", *ends], times), sep="\n")
    if file:
        report = {"triton": triton.__version__, "assumptions": asdict(assumed), "goals": GOALS, "models": ends}
        file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
