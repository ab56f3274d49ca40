"""Shares of levels, scaled until what they read is what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

Ratios = dict[int, tuple[float, float]]
"""Level -> the part of the blocks, or of the mass, that it gets; see `PSAConfig.mask_ratios`."""

BLOCK_SPARSE: Final = {1: 1.0}
DEFAULT: Final = {1: 0.10, 2: 0.05, 8: 0.20}
"""The default configuration's: they read .15."""
_HALVINGS: Final = 12


def scaled(weights: Mapping[int, float], factor: float, rest: int = 0) -> Ratios:
    """`weights` times `factor` as far as there is room, and level `rest` for what is left."""
    ratios, start = {}, 0.0
    for level, weight in weights.items():
        end = min(start + weight * factor, 1.0)
        ratios[level] = (start, end)
        start = end
    return ratios | {rest: (start, 1.0)}


def greatest(fits: Callable[[float], bool], most: float) -> float:
    """A number up to `most` that fits, the greatest but for little, by halving: below one that fits all do."""
    if fits(most):
        return most
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
