"""Hardware choices of the attention kernels: rows of a tile, warps, loads in flight. They do not change results.

`tiles.json` holds what fits each GPU (`benchmarks/hardware_table.py` makes it), exceptions before defaults; a user's
file, which comes first, what was fastest on one (`psa bench --tune-kernels` makes it). No call tries anything out.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from psa_triton.gpu import SMALLEST_TILE, current_target, dim_tile


@dataclass(frozen=True)
class Tiles:
    """How one kernel cuts its work."""

    m: int
    """Query rows of a tile."""
    n: int
    """Key rows of a tile."""
    edge: int
    """Key rows of a tile that masks may cut: few of these are read, and a smaller one takes fewer registers."""
    warps: int
    """Warps that share a tile."""
    stages: int
    """Stages of the loops' pipeline: two load a block number and find the rows, the others have rows in flight."""


@dataclass(frozen=True)
class Case:
    """What tiles are chosen by."""

    target: str
    """`sm_90`, `gfx942`."""
    kernel: str
    """`attend`, `attend_int8`, `attend_tma`, `query_gradient` or `row_gradient`."""
    bytes: int
    """Of a number of the inputs."""
    dim: int
    """Head dimension, as `table_dim` has it."""
    rows: int
    """Rows of a key block: its tokens, or, for `row_gradient`, what it has at the level."""
    causal: bool
    corrected: bool
    """Whether logits are corrected, which takes a row of numbers more."""


def choose_tiles(kernel: str, q: torch.Tensor, block_m: int, rows: int, is_causal: bool, is_corrected: bool) -> Tiles:
    """Tiles of `kernel`, as `Case` has it, for queries like `q [..., D]` in blocks of `block_m`, on their device."""
    dim = table_dim(q.shape[-1])
    case = Case(current_target(q.device), kernel, q.dtype.itemsize, dim, rows, is_causal, is_corrected)
    tiles = _first_match(_rules(user_file()), case)
    if tiles is None:
        known = {rule["target"] for rule, _ in _rules() if "target" in rule}
        tiles = _first_match(_rules(), replace(case, target=_nearest(case.target, known)))
    assert tiles is not None, "the last rules of the shipped table are for everything"
    # A smaller tile takes as many registers of a thread with fewer warps; matrix units want four.
    m = min(tiles.m, max(block_m, SMALLEST_TILE))
    n = min(tiles.n, max(rows, SMALLEST_TILE)) if kernel == "row_gradient" else tiles.n
    return replace(tiles, m=m, n=n, warps=max(tiles.warps * m * n // (tiles.m * tiles.n), min(tiles.warps, 4)))


def own_tiles(kernel: str, target: str, q: torch.Tensor, rows: int) -> Tiles | None:
    """Tiles of a `kernel` for `target` alone, which runs only where a user's own table names it; None elsewhere."""
    case = Case(current_target(q.device), kernel, q.dtype.itemsize, table_dim(q.shape[-1]), rows, False, False)
    rules = tuple(rule for rule in _rules(user_file()) if rule[0].get("kernel") == kernel)
    return _first_match(rules, case) if case.target == target else None


def table_dim(dim: int) -> int:
    """The next of the head dimensions that tables know: 64, 128, 256."""
    return min(max(dim_tile(dim), 64), 256)


def user_file() -> Path:
    """Where a user's own table is looked for: `$PSA_TILES`, or `psa-triton/tiles.json` in the folder for settings."""
    home = os.path.expanduser("~")  # of nobody, too, for whom Path.home() is an error
    folder = os.environ.get("XDG_CONFIG_HOME") or Path(home, ".config")
    return Path(os.environ.get("PSA_TILES") or Path(folder, "psa-triton", "tiles.json"))


Rules = tuple[tuple[dict[str, Any], Tiles], ...]
"""What of a `Case` each is for, and its tiles; the first that matches counts."""


@cache
def _rules(file: Path | None = None) -> Rules:
    """The rules of a table, by default of the one that is shipped; none if there is no such file.

    None either if the folder for settings is somebody else's, as in containers.

    Raises:
        OSError: the file that `$PSA_TILES` names cannot be read.
        ValueError: the file is no table.
    """
    if file is None:
        text = (files(__package__) / "tiles.json").read_text()
    else:
        try:
            text = file.read_text()
        except OSError as error:
            if os.environ.get("PSA_TILES") and not isinstance(error, FileNotFoundError):
                raise
            return ()
    try:
        return tuple((row["for"], Tiles(*row["tiles"])) for row in json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected a table as `psa bench --tune-kernels` writes it, got {error!r}; delete or write it anew"
        ) from None


def _first_match(rules: Rules, case: Case) -> Tiles | None:
    known = asdict(case)
    return next((tiles for wanted, tiles in rules if wanted.items() <= known.items()), None)


def _nearest(target: str, known: set[str]) -> str:
    """The one of `known` targets that is as `target` is, or has less of everything."""
    if target.startswith("gfx"):
        return "gfx942"
    # sm_89 is of the family of sm_86; what is of none has at least the shared memory of sm_86.
    family = [k for k in known if k.startswith("sm_") and k[3:-1] == target[3:-1] and k <= target]
    return max(family, default="sm_86")
