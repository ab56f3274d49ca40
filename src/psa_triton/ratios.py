"""What a level is, and which shares of the importance order or mass a set of levels may divide."""

from __future__ import annotations

import math

COARSEST_LEVEL = 64
"""Levels are stored as int8, whose largest power of two this is."""


def is_level(value: int) -> bool:
    """Whether `value` is a pyramid level: 0 (skip) or a power of two up to 64."""
    return value == 0 or (0 < value <= COARSEST_LEVEL and value & (value - 1) == 0)


def check_mask_ratios(ratios: dict[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Check that level shares cover [0, 1] without gap or overlap, in the order finest to coarsest, 0 last.

    Args:
        ratios: `{level: (lo, hi)}`, the shares `[lo, hi)` of the importance order.

    Returns:
        The same shares, levels sorted finest first and 0 last, empty shares included.

    Raises:
        ValueError: naming the level at fault, what was expected and what came.
    """
    if not ratios:
        raise ValueError("expected at least one level, got none")
    for level, (low, high) in ratios.items():
        if not is_level(level):
            raise ValueError(f"level {level}: expected 0 or a power of two up to {COARSEST_LEVEL}")
        if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high <= 1):
            raise ValueError(f"level {level}: expected 0 <= lo <= hi <= 1, got [{low}, {high}]")
    ordered = dict(sorted(ratios.items(), key=lambda item: math.inf if item[0] == 0 else item[0]))
    reached = 0.0
    for level, (low, high) in ordered.items():
        if not math.isclose(low, reached, abs_tol=1e-9):
            fault = "overlaps the level before it" if low < reached else "leaves a gap"
            raise ValueError(
                f"level {level}: [{low}, {high}] {fault}: shares run from fine to coarse (0 last) "
                f"and each starts where the one before it ends, so this one starts at {reached}"
            )
        reached = high
    if not math.isclose(reached, 1.0, abs_tol=1e-9):
        raise ValueError(f"shares end at {reached}, expected 1.0; give the rest to level 0 to skip it")
    return ordered
