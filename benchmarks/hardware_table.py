"""Makes the table of tiles that the library ships, without a GPU: `python benchmarks/hardware_table.py --write`.

For every GPU, kernel, head dimension, block size and mask it compiles candidates, best first, and keeps the first that
asks for no more shared memory than a program has, spills nothing, and has the loads of two tiles in flight where it
waits. Without `--write` it tells what of the table in place does not fit; run it so with every supported Triton.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import chain, groupby, product
from pathlib import Path
from typing import Any

import compiled_kernels
import triton
from compiled_kernels import DTYPES, TARGETS, Compiled, compile_kernel, record_launches
from gpu.prepare import processes

from psa_triton.gpu import Launch
from psa_triton.kernels.triton import tiles
from psa_triton.kernels.triton.tiles import Tiles
from psa_triton.tools.bench.tiles import candidates, only

BLOCKS = (32, 64, 128)
TABLE = Path(tiles.__file__).with_name("tiles.json")


@dataclass(frozen=True)
class Choice:
    """Launches that get the same tiles."""

    target: str
    kernel: str
    bytes: int
    dim: int
    rows: int
    causal: bool | None
    """None for both: numbers of four bytes and wide heads have one rule for all masks and blocks."""
    corrected: bool = False

    @property
    def group(self) -> dict[str, Any]:
        """What one default is for."""
        group = dict(target=self.target, kernel=self.kernel, bytes=self.bytes, dim=self.dim)
        return group | {"corrected": True} if self.corrected else group

    @property
    def dtype(self) -> str:
        return "bf16" if self.bytes == 2 else "fp32"


def launches(choice: Choice, chosen: Tiles | None) -> dict[str, Launch]:
    """The kernel's launches for the choice, with tiles as chosen or else as the table has them."""
    levels = (1, 2, 4, 8) if choice.kernel == "row_gradient" else (1,)
    causal = (False, True) if choice.causal is None else (choice.causal,)
    path = compiled_kernels.forward if choice.kernel == "attend" else compiled_kernels.backward
    found = {}
    for level, is_causal in product(levels, causal):
        if choice.rows * level not in BLOCKS:
            continue
        settings = dict(block_n=choice.rows * level, is_causal=is_causal)
        settings |= dict(pool_correction="isotropic" if choice.corrected else "none")
        with only(chosen):
            made = record_launches(partial(path, **settings), DTYPES[choice.dtype], choice.dim, choice.target)
        wanted = f"row_gradient level {level}" if choice.kernel == "row_gradient" else choice.kernel
        found |= {f"{name} {settings}": launch for name, launch in made.items() if name == wanted}
    return found


def faults(choice: Choice, chosen: Tiles | None = None) -> list[str]:
    """What speaks against tiles, or against those of the table."""
    found = []
    for name, launch in launches(choice, chosen).items():
        case = compiled_kernels.Case(name, choice.target, choice.dtype, choice.dim)
        found += [f"{name}: {fault}" for fault in faults_of(compile_kernel(name, launch, case))]
    return found


def faults_of(made: Compiled) -> list[str]:
    if made.error:
        return [made.error]
    found = []
    if made.local:
        found.append(f"{made.local} bytes spilled")
    # A product of float32 is three, and long enough for one load.
    if made.in_flight is not None and made.in_flight < (2 if made.case.dtype == "bf16" else 1):
        found.append(f"{made.in_flight} loads in flight")
    return found


def choose(choice: Choice) -> tuple[Choice, Tiles | None, list[str]]:
    """The first tiles without a fault: those that the table has for the GPU, then the candidates."""
    told: list[str] = []
    tried = (*in_table(choice), *candidates(choice.target, choice.kernel, choice.bytes, choice.dim))
    for chosen in dict.fromkeys(tried):
        told = faults(choice, chosen)
        if not told:
            return choice, chosen, []
    return choice, None, told


def in_table(choice: Choice) -> list[Tiles]:
    """The tiles that were chosen before, for a choice whose GPU has rules of its own."""
    rows = [row for row in json.loads(TABLE.read_text()) if "target" in row["for"]]
    return [Tiles(*row["tiles"]) for row in rows if row["for"].items() <= asdict(choice).items()][:1]


def all_choices(target: str) -> list[Choice]:
    kernels = ("attend", "query_gradient", "row_gradient")
    corrected = product(kernels, (2,), (64, 128), (64,), (False,), (True,))
    of_blocks = product(kernels, (2,), (64, 128), BLOCKS, (False, True))
    wide = [(kernel, *size, 64, None) for kernel in kernels for size in ((2, 256), (4, 64), (4, 128), (4, 256))]
    return [Choice(target, *choice) for choice in (*corrected, *of_blocks, *wide)]


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep what fits, choose the rest anew, renew the table")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="of these alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kernels compiled at a time")
    args, told = parser.parse_args(), []
    with processes(args.jobs) as pool:
        for target in args.target:
            choices = all_choices(target)
            if not args.write:
                told += chain(*pool.map(faults, choices))
                continue
            chosen = {}
            for choice, fits, why in pool.map(choose, choices):
                print(choice, fits or "nothing fits", flush=True)
                told += why
                if fits:
                    chosen[choice] = fits
            write(chosen)
    print(*told, f"triton {triton.__version__}: {len(told)} faults", sep="\n")
    return 1 if told else 0


def write(chosen: dict[Choice, Tiles]) -> None:
    """Put what was chosen into the table, in place of what it has for the same groups."""
    groups = [choice.group for choice in chosen]
    kept = [row for row in json.loads(TABLE.read_text()) if not any(g.items() <= row["for"].items() for g in groups)]
    lines = (json.dumps(row) for row in (*rules(chosen), *kept))
    TABLE.write_text("[\n  " + ",\n  ".join(lines) + "\n]\n")


if __name__ == "__main__":
    sys.exit(main())
