"""From an allocation to the preset that carries it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from psa_triton.config import BudgetRow, PSAConfig
from psa_triton.tools.tuning.allocation import Allocation, Cell
from psa_triton.tools.tuning.plan import RunPart

_DIGITS = 4


def tuned_config(
    base: PSAConfig, cells: Sequence[Cell], parts: Sequence[RunPart], allocation: Allocation, *, steps: int, words: str
) -> PSAConfig:
    """`base` with a table of budgets.

    Args:
        base: blocks, order and warm-up.
        cells: every layer in every part.
        parts: in order.
        allocation: of the cells.
        steps: of the run that was measured.
        words: the description.
    """
    budgets = {
        (cell.part, cell.layer): _down(point.budget) for cell, point in zip(cells, allocation.points, strict=True)
    }
    layers = 1 + max(cell.layer for cell in cells)
    table = tuple(
        BudgetRow(start=_start(part, steps) if row else 0.0, budgets=tuple(budgets[row, x] for x in range(layers)))
        for row, part in enumerate(parts)
    )
    return base.replace(description=words, budget=_down(allocation.cost), budget_table=table)


def _start(part: RunPart, steps: int) -> float:
    """Half a step before the first, so that a rounded share is no step late."""
    return round((part.first - 0.5) / steps, _DIGITS)


def _down(value: float) -> float:
    """Rounded, never up; what a sum of floats lacks of a round number is no reason to go down."""
    return math.floor(value * 10**_DIGITS + 1e-6) / 10**_DIGITS
