"""Makes the table of tiles that the library ships, without a GPU: `python benchmarks/hardware_table.py --write`.

For every GPU, kernel, head dimension, block size and mask it compiles candidates, best first, and keeps the first that
asks for no more shared memory than a program has, spills nothing, and has the loads of two tiles in flight where it
waits. Without `--write` it tells what of the table in place does not fit; run it so with every supported Triton.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import compiled_kernels
import triton
from compiled_kernels import DTYPES, TARGETS, Compiled, compile_kernel, record_launches

from psa_triton.gpu import Launch
from psa_triton.kernels.triton import tiles
from psa_triton.kernels.triton.tiles import Tiles
from psa_triton.tools.bench.tiles import candidates, only

BLOCKS = (32, 64, 128)


@dataclass(frozen=True)
class Choice:
    """Launches that get the same tiles."""

    target: str
    kernel: str
    dim: int
    rows: int
    causal: bool
    corrected: bool = False

    @property
    def group(self) -> dict[str, Any]:
        """What one default is for."""
        group = dict(target=self.target, kernel=self.kernel, bytes=2, dim=self.dim)
        return group | {"corrected": True} if self.corrected else group


def launches(choice: Choice, chosen: Tiles | None) -> dict[str, Launch]:
    """The kernel's launches for the choice, with tiles as chosen or else as the table has them."""
    levels = (1, 2, 4, 8) if choice.kernel == "row_gradient" else (1,)
    found = {}
    for level in levels:
        if choice.rows * level not in BLOCKS:
            continue
        path = compiled_kernels.forward if choice.kernel == "attend" else compiled_kernels.backward
        settings = dict(block_n=choice.rows * level, is_causal=choice.causal)
        settings |= dict(pool_correction="isotropic" if choice.corrected else "none")
        with only(chosen):
            made = record_launches(partial(path, **settings), DTYPES["bf16"], choice.dim, choice.target)
        wanted = f"row_gradient level {level}" if choice.kernel == "row_gradient" else choice.kernel
        found |= {f"{name} n={choice.rows * level}": launch for name, launch in made.items() if name == wanted}
    return found


def faults(choice: Choice, chosen: Tiles | None = None) -> list[str]:
    """What speaks against tiles, or against those of the table."""
    found = []
    for name, launch in launches(choice, chosen).items():
        case = compiled_kernels.Case(name, choice.target, "bf16", choice.dim)
        found += [f"{name}: {fault}" for fault in faults_of(compile_kernel(name, launch, case))]
    return found


def faults_of(made: Compiled) -> list[str]:
    if made.error:
        return [made.error]
    found = []
    if made.local:
        found.append(f"{made.local} bytes spilled")
    if made.in_flight is not None and made.in_flight < 2:
        found.append(f"{made.in_flight} loads in flight")
    return found


def choose(choice: Choice) -> tuple[Choice, Tiles | None, list[str]]:
    told: list[str] = []
    for chosen in candidates(choice.target, choice.kernel, choice.dim):
        told = faults(choice, chosen)
        if not told:
            return choice, chosen, []
    return choice, None, told


def all_choices() -> list[Choice]:
    kernels = ("attend", "query_gradient", "row_gradient")
    corrected = product(TARGETS, kernels, (64, 128), (64,), (False,), (True,))
    of_blocks = product(TARGETS, ("attend", "query_gradient"), (64, 128), BLOCKS, (False, True))
    of_rows = product(TARGETS, ("row_gradient",), (64, 128), (32, 64, 128), (False, True))
    return [Choice(*choice) for choice in (*corrected, *of_blocks, *of_rows)]


def rules(chosen: dict[Choice, Tiles]) -> list[dict[str, Any]]:
    """A default for each GPU, kernel and head dimension, after the exceptions to it."""
    found = []
    for group, of_group in groupby(chosen, key=lambda choice: choice.group):
        members = list(of_group)
        default = Counter(chosen[choice] for choice in members).most_common(1)[0][0]
        for choice in members:
            both = [other for other in members if other.rows == choice.rows and chosen[other] == chosen[choice]]
            if chosen[choice] == default or (len(both) == 2 and choice.causal):
                continue
            wanted = group | dict(rows=choice.rows) | ({} if len(both) == 2 else dict(causal=choice.causal))
            found.append({"for": wanted, "tiles": astuple(chosen[choice])})
        found.append({"for": group, "tiles": astuple(default)})
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="choose anew, and replace the table that is shipped")
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="with --write: of these alone"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kernels compiled at a time")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    choices = [choice for choice in all_choices() if choice.target in args.target]
    # Not forked: threads of torch and LLVM do not survive a fork.
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        if not args.write:
            told = [fault for faults_found in pool.map(faults, choices) for fault in faults_found]
            print(*told, f"triton {triton.__version__}: {len(told)} faults in {len(choices)} choices", sep="\n")
            return 1 if told else 0
        chosen = {}
        for choice, fits, told in pool.map(choose, choices):
            print(choice, fits or f"nothing fits, the default stays: {told}", flush=True)
            if fits:
                chosen[choice] = fits
    table = Path(tiles.__file__).with_name("tiles.json")
    kept = [row for row in json.loads(table.read_text()) if not made_here(row["for"], args.target)]
    lines = (json.dumps(row) for row in (*rules(chosen), *kept))
    table.write_text("[\n  " + ",\n  ".join(lines) + "\n]\n")
    return 0


def made_here(wanted: dict[str, Any], targets: list[str]) -> bool:
    """Whether a rule is made anew; defaults for every GPU and for other sizes are written by hand."""
    return wanted.get("target") in targets and wanted.get("bytes") == 2 and wanted.get("dim") in (64, 128)


if __name__ == "__main__":
    sys.exit(main())
