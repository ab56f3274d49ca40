"""Which point of its curve each layer and part of a run gets, so that error or cost are least.

What counts is the sum of squared errors: those of different layers and steps point in directions of their own. To
minimise their plain sum instead made videos worse than one budget for all (`docs/log.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from psa_triton.tools.tuning.curve import (
    BUDGETS,
    Curve,
    Point,
    at_budget,
    lower_hull,
    mean_curve,
    mix,
    refined,
    slope,
    squared,
)
from psa_triton.tools.tuning.plan import RunPart

_HALVINGS: Final = 50
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Cell:
    """One layer in one part of a run."""

    layer: int
    """Index of the transformer block."""
    part: int
    """Index of the part."""
    weight: float
    """Denoising steps of the part."""
    measured: Curve
    """At the budgets that were tried."""

    @cached_property
    def squares(self) -> Curve:
        """With budgets between them, and errors squared."""
        return squared(refined(self.measured))

    @cached_property
    def hull(self) -> Curve:
        """Of `squares`, what is worth choosing from."""
        return lower_hull(self.squares)


def make_cells(measured: Mapping[tuple[int, int], Sequence[Curve]], parts: Sequence[RunPart]) -> list[Cell]:
    """A cell for every part and layer, in this order, with the mean of its curves.

    Args:
        measured: curves by (part, layer).
        parts: of the run.

    Raises:
        ValueError: a layer below the last one that was measured lacks in a part.
    """
    layers = 1 + max(layer for _, layer in measured)
    places = [(part, layer) for part in range(len(parts)) for layer in range(layers)]
    if missing := [(part, layer) for part, layer in places if (part, layer) not in measured]:
        part, layer = missing[0]
        raise ValueError(
            f"expected attention calls of layers 0 to {layers - 1} in every step, found none of layer {layer} in step "
            f"{parts[part].measured}"
        )
    return [Cell(layer, part, len(parts[part]), mean_curve(measured[part, layer])) for part, layer in places]


@dataclass(frozen=True)
class Allocation:
    """A point for each cell, and what they come to, weighted."""

    points: tuple[Point, ...]
    """In the order of the cells."""
    cost: float
    """Mean density, that of the importance estimate included."""
    error: float
    """Root mean square of the relative L2 errors."""


def within_cost(cells: Sequence[Cell], limit: float) -> Allocation:
    """The least error at a mean cost of `limit`.

    Raises:
        ValueError: even the least budgets that were tried cost more.
    """
    cheapest = _sum_up(cells, [cell.hull[0] for cell in cells])
    if limit < cheapest.cost:
        raise ValueError(
            f"expected a mean density of {cheapest.cost:.3f} or more, which is what the least budgets that were tried "
            f"cost, got {limit:.3f}; ask for less speed: --budget {math.ceil(100 * cheapest.cost) / 100:g} can be had"
        )
    return _climb(cells, lambda cost, _, price, __: (limit - cost) / price)


def within_error(cells: Sequence[Cell], limit: float) -> Allocation:
    """The least mean cost at an error of `limit`; the least budgets that were tried if they keep within it."""
    return _climb(cells, lambda _, square, __, gain: (square - limit**2) / gain)


def one_budget(cells: Sequence[Cell], cost: float) -> tuple[float, Allocation]:
    """The same budget for all cells that together cost at most as much, and what it gives."""

    def everywhere(budget: float) -> Allocation:
        return _sum_up(cells, [at_budget(cell.squares, budget) for cell in cells])

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        budget = (low + high) / 2
        low, high = (budget, high) if everywhere(budget).cost <= cost else (low, budget)
    return low, everywhere(low)


def _climb(cells: Sequence[Cell], share_of: Callable[[float, float, float, float], float]) -> Allocation:
    """From the cheapest points, take the steps up the hulls that avoid most squared error per cost, while allowed to.

    Along a hull, gains per cost fall, so this order never skips a step; and no other choice of the same cost has less
    error. The last step is taken in part: budgets are continuous.

    Args:
        cells: layers and parts; of equal gains, the first cell's comes first.
        share_of: given mean cost and squared error so far and what the next step adds to the one and takes from the
            other, the share of the step to take; 1 or more for all of it.
    """
    total = sum(cell.weight for cell in cells)
    points = [cell.hull[0] for cell in cells]
    steps = [(index, step) for index, cell in enumerate(cells) for step in pairwise(cell.hull)]
    steps.sort(key=lambda entry: -slope(*entry[1]))
    start = _sum_up(cells, points)
    cost, square = start.cost, start.error**2
    for index, (low, high) in steps:
        weight = cells[index].weight / total
        price, gain = weight * (high.cost - low.cost), weight * (low.error - high.error)
        share = max(0.0, share_of(cost, square, price, gain))
        if share < 1 - _ROUNDING:
            points[index] = mix(low, high, share)
            break
        points[index] = high
        cost, square = cost + price, square - gain
    return _sum_up(cells, points)


def _sum_up(cells: Sequence[Cell], points: Sequence[Point]) -> Allocation:
    """Of points whose errors are squared."""
    total = sum(cell.weight for cell in cells)
    cost = sum(cell.weight * point.cost for cell, point in zip(cells, points, strict=True)) / total
    square = sum(cell.weight * point.error for cell, point in zip(cells, points, strict=True)) / total
    return Allocation(tuple(point._replace(error=point.error**0.5) for point in points), cost, square**0.5)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One wish; the other two are None.

    Raises:
        ValueError: none or several, or one out of range.
    """

    budget: float | None = None
    """Mean density of the steps after the warm-up, the estimate of importance included."""
    speedup: float | None = None
    """Work of dense attention over that of the whole run, its warm-up included."""
    error: float | None = None
    """Root mean square of the relative L2 errors of layers and steps after the warm-up."""

    def __post_init__(self) -> None:
        wishes = {"budget": self.budget, "target_speedup": self.speedup, "target_error": self.error}
        given = [name for name, value in wishes.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of budget, target_speedup, target_error, got {' and '.join(given) or 'none'}"
            )
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError(f"budget: expected more than 0 and at most 1, got {self.budget}")
        if self.speedup is not None and not self.speedup >= 1:
            raise ValueError(f"target_speedup: expected 1 or more, got {self.speedup}")
        if self.error is not None and not 0 <= self.error < math.inf:
            raise ValueError(f"target_error: expected a finite number >= 0, got {self.error}")

    def check(self, *, steps: int, warmup: int) -> None:
        """Check against a run of `steps`, the first `warmup` of them dense.

        Raises:
            ValueError: it asks for less than the least budget that is tried.
        """
        least = BUDGETS[0]
        if self.budget is not None and self.budget < least:
            raise ValueError(f"budget: expected {least} or more, got {self.budget:g}")
        fastest = steps / (warmup + least * (steps - warmup))
        if self.speedup is not None and self.speedup > fastest:
            raise ValueError(
                f"target_speedup: expected {fastest:.2f} or less, which a budget of {least} gives with {warmup} of "
                f"{steps} steps dense, got {self.speedup:g}; fewer warmup_steps allow more"
            )

    def reach(self, cells: Sequence[Cell], *, steps: int, warmup: int) -> Allocation:
        """The best allocation that meets it.

        Raises:
            ValueError: blocks that are always read make even the least budgets dearer.
        """
        if self.error is not None:
            return within_error(cells, self.error)
        if self.budget is not None:
            return within_cost(cells, self.budget)
        assert self.speedup is not None
        return within_cost(cells, (steps / self.speedup - warmup) / (steps - warmup))
