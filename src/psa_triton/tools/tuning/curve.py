"""Error of an attention at growing budgets, and the part of that curve that is worth choosing from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Final, NamedTuple

import torch

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.importance import estimation_cost
from psa_triton.tools.inspection.exact import sample_exactly, spread_evenly
from psa_triton.tools.inspection.inputs import AttentionInputs

BUDGETS: Final = (0.04, 0.06, 0.09, 0.13, 0.2, 0.3, 0.5)
"""Where curves are measured; dense attention ends each."""


class Point(NamedTuple):
    """What a budget costs and leaves of error."""

    budget: float
    """As in a preset; 1 is dense attention."""
    cost: float
    """Density, that of the importance estimate included: at most the budget, but for blocks that are always read."""
    error: float
    """Relative L2 error of the output."""


Curve = tuple[Point, ...]
"""By growing budget; the last point is `DENSE`."""

_PIECES: Final = 8
_HEADS: Final = 8
"""Exact attention is computed of as many, spread evenly."""

DENSE: Final = Point(1.0, 1.0, 0.0)


@torch.no_grad()
def measure_curve(inputs: AttentionInputs, config: PSAConfig, *, query_blocks: int, impl: Impl = "auto") -> Curve:
    """The curve of one attention call, without budgets that the importance estimate alone would use up.

    Args:
        inputs: a batch of one, with values.
        config: in budget mode; its own budget does not count.
        query_blocks: to compute exact attention of, spread evenly; all if there are fewer.
        impl: implementation of the operator.

    Returns:
        Costs are means over all heads, errors root mean squares over the sampled ones.
    """
    assert inputs.v is not None
    ordered = inputs.ordered(*inputs.orders(config))
    chosen = list(spread_evenly(ordered.q.shape[1], _HEADS))
    sampled = ordered.heads(chosen)
    estimate = estimation_cost(config.importance, config.block_m, config.block_n)
    curve = []
    for budget in (budget for budget in BUDGETS if budget > estimate):
        levels = ordered.choose_levels(config.replace(budget=budget, budget_table=()), impl)
        cost = float(ordered.density(levels, config).mean()) + estimate
        sample = sample_exactly(sampled, levels[:, chosen], config, query_blocks=query_blocks, impl=impl)
        assert sample.errors is not None
        curve.append(Point(budget, cost, root_mean_square(sample.errors)))
    return (*curve, DENSE)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves of the same budgets; of errors the root mean square."""
    return tuple(
        Point(points[0].budget, fmean(point.cost for point in points), root_mean_square([x.error for x in points]))
        for points in zip(*curves, strict=True)
    )


def root_mean_square(values: Sequence[float]) -> float:
    """Errors that point in directions of their own add up by their squares."""
    return fmean(value**2 for value in values) ** 0.5


def squared(curve: Curve) -> Curve:
    """The curve with its errors squared."""
    return tuple(point._replace(error=point.error**2) for point in curve)


def refined(curve: Curve) -> Curve:
    """The curve with points between those that were measured, cost and error along powers of the budget.

    That is how they go, nearly: straight in a logarithmic plot. The piece before dense attention, where the error
    ends at 0, stays straight.
    """
    fine = []
    for low, high in pairwise(curve):
        pieces = _PIECES if low.error > 0 and high.error > 0 else 1
        fine += [_power_mix(low, high, piece / pieces) if piece else low for piece in range(pieces)]
    return (*fine, curve[-1])


def lower_hull(curve: Curve) -> Curve:
    """The points between which error falls ever more slowly, dearest last; the others are never worth their cost.

    Mixing two points gives any cost between them, and the error of the mixture lies on the line through them: the
    lower convex hull, as far as error falls.
    """
    hull: list[Point] = []
    for point in sorted(curve, key=lambda point: (point.cost, point.error)):
        if hull and point.error >= hull[-1].error:
            continue
        while len(hull) > 1 and slope(hull[-2], hull[-1]) <= slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return tuple(hull)


def mix(low: Point, high: Point, share: float) -> Point:
    """The point that lies `share` of the way from one to another."""
    return Point(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))


def at_budget(curve: Curve, budget: float) -> Point:
    """The curve between its points, straight; its first point for smaller budgets."""
    for low, high in pairwise(curve):
        if budget <= high.budget:
            return mix(low, high, max(0.0, budget - low.budget) / (high.budget - low.budget))
    return curve[-1]


def _power_mix(low: Point, high: Point, share: float) -> Point:
    return Point(*(a * (b / a) ** share for a, b in zip(low, high, strict=True)))


def slope(low: Point, high: Point) -> float:
    """Error avoided per cost."""
    return (low.error - high.error) / (high.cost - low.cost)
