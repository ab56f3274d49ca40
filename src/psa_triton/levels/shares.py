"""Which part of a row's order of importance goes to which level, in the numbers that selection compares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

MASS_BITS: Final = 40
"""Mass is summed in integers of `2 ** -40`: their sum does not depend on the order in which a device adds."""
_BOUNDARY_SLACK = 1e-9
"""Lets a share such as .29 of 100 blocks, 28.999999999999996 in binary, end at block 29."""
_MASS_SLACK = 1e-6
"""Lets a mass that meets a boundary but for the rounding of float32 importance count as meeting it."""


@dataclass(frozen=True)
class Shares:
    """Levels of a row's blocks, in the order of their importance.

    Attributes:
        levels: finest first, 0 last.
        ends: where every level but the last ends: block `b` gets `levels[i]`, `i` the number of ends that what lies
            before `b` has reached. Blocks before it, or their mass in units of `2 ** -MASS_BITS`.
        full: this many blocks are level 1 whatever comes before them.
        by_mass: whether ends are mass.

    Where rows have different numbers of blocks, `ends` or `full` may be int64 tensors that broadcast with the rows.
    """

    levels: tuple[int, ...]
    ends: tuple[int | Tensor, ...]
    full: int | Tensor
    by_mass: bool


def shares_by_rank(ratios: Mapping[int, tuple[float, float]], blocks: int | Tensor) -> Shares:
    """A level ends at block `floor(blocks * hi)`; the finest with a share ends after one block at the earliest."""
    # Shares are contiguous from 0, so all levels before the finest with a share end at 0.
    ends = [_at_least_one(floor(blocks * high)) if high > 0 else 0 for _, high in ratios.values()]
    return Shares(tuple(ratios), tuple(ends[:-1]), full=0, by_mass=False)


def shares_by_mass(ratios: Mapping[int, tuple[float, float]], blocks: int | Tensor, min_full_ratio: float) -> Shares:
    """A level ends where a share `hi` of the mass is reached; `floor(min_full_ratio * blocks) + 1` blocks are full."""
    ends = [round((high - _MASS_SLACK) * 2**MASS_BITS) for _, high in ratios.values()]
    return Shares(tuple(ratios), tuple(ends[:-1]), full=floor(blocks * min_full_ratio) + 1, by_mass=True)


def _at_least_one(end: int | Tensor) -> int | Tensor:
    return end.clamp(min=1) if isinstance(end, Tensor) else max(end, 1)


def floor(value: float | Tensor) -> int | Tensor:
    """`math.floor` of a product whose rounding may have brought it just below an integer; of a tensor, as int64."""
    if isinstance(value, Tensor):
        return (value + _BOUNDARY_SLACK).floor().long()
    return math.floor(value + _BOUNDARY_SLACK)
