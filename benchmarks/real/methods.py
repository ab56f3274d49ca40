"""A way to be sparse, and its error at wanted total costs on a sample of query blocks."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from shares import greatest, scaled
from torch import Tensor

from psa_triton import PSAConfig, pyramid_attention
from psa_triton.config import BudgetScope, MaskMode, PoolCorrection
from psa_triton.importance import estimation_cost
from real.inputs import InputSet
from real.sample import Order, Sample, take_sample

Row = dict[str, Any]
"""A method on a set at a wanted cost: set, method, wanted, density, cost, error, worst, reached."""


@dataclass(frozen=True)
class Method:
    """A way to choose levels, but for how much is read."""

    name: str
    shares: Mapping[int, float] | None
    """Of the blocks, or of the mass, that levels get, times one factor that the cost decides; None for a budget."""
    rest: int = 0
    """Level of what is left over; 0 drops it."""
    mode: MaskMode = "topk"
    budget_scope: BudgetScope = "row"
    block_n: int = 64
    order: Order = "Gilbert"
    importance: str = "pooled"
    """An estimator, or `exact`: the true attention mass, at no cost. No method can have it; it shows what is left."""
    use_sim_mask: bool = False
    pool_correction: PoolCorrection = "none"

    @property
    def coarsest(self) -> int:
        """Level."""
        return max(*(self.shares or {8: 1.0}), self.rest)

    def config(self, sample: Sample) -> PSAConfig:
        """Under a causal mask the first key block is read in full."""
        names = ("budget_scope", "block_n", "use_sim_mask", "pool_correction")
        estimator = {} if self.importance == "exact" else {"importance": self.importance}
        same = {name: getattr(self, name) for name in names} | estimator
        return PSAConfig(mask_mode=self.mode, block_m=sample.block_m, keep_first_block=sample.is_causal, **same)


@dataclass(frozen=True)
class Point:
    """What a method reached on an input."""

    wanted: float
    """Total cost that was asked for, as a share of dense attention's."""
    density: float
    """Groups read over keys visible."""
    cost: float
    """Density, and what the estimate and the order cost."""
    errors: tuple[float, ...]
    """Of each head: L2 norm of the difference to dense attention over that of dense attention."""

    @property
    def is_reached(self) -> bool:
        """Whether the method can be had at the wanted cost: some cost more, however little they read."""
        return self.cost <= self.wanted + 1e-6


def measure_set(inputs: InputSet, methods: Mapping[str, Method], costs: Sequence[float], blocks: int) -> list[Row]:
    """A row for every method, by its name here, and every cost, from `blocks` query blocks of each head."""
    found: dict[str, list[list[Point]]] = defaultdict(list)
    for case in inputs.cases():
        for order in sorted({method.order for method in methods.values()}):
            sample = take_sample(case, order, block_m=inputs.block_m, blocks=blocks)
            for name, method in methods.items():
                if method.order == order:
                    fitted = replace(method, block_n=inputs.block_n or method.block_n)
                    found[name].append(measure_method(sample, fitted, costs))
        print(f"{case.name} measured", flush=True)
    return [
        {"set": inputs.name, "method": name, **_summary(points)}
        for name, cases in found.items()
        for points in zip(*cases, strict=True)
    ]


def measure_method(sample: Sample, method: Method, costs: Iterable[float]) -> list[Point]:
    """A point for every wanted total cost: the most that it pays for, or the least there is.

    None for costs that a budget's estimate uses up.
    """
    config, choices = method.config(sample), sample.choices
    exact = sample.exact_importance(method.block_n) if method.importance == "exact" else None
    estimate = estimation_cost(method.importance, config.block_m, config.block_n) if exact is None else 0.0
    overhead = sample.order_cost + estimate

    def levels_within(density: float) -> Tensor:
        if method.shares is None:
            return choices.levels(config.replace(budget=min(1.0, density + estimate)))
        shares = method.shares

        def levels(factor: float) -> Tensor:
            return choices.levels(config.replace(mask_ratios=scaled(shares, factor, method.rest)), exact)

        return levels(greatest(lambda factor: choices.density(levels(factor), config) <= density, 1.0 / shares[1]))

    points = []
    for wanted in costs:
        if method.shares is None and wanted <= overhead:
            continue
        levels = levels_within(wanted - overhead)
        out = pyramid_attention(
            *(sample.q, sample.k, sample.v, levels),
            block_m=config.block_m,
            block_n=config.block_n,
            is_causal=sample.is_causal,
            pool_correction=config.pool_correction,
        )
        errors = (out - sample.expected).norm(dim=(-2, -1)) / sample.expected.norm(dim=(-2, -1))
        read = choices.density(levels, config)
        points.append(Point(wanted, read, read + overhead, tuple(errors[0].tolist())))
    return points


def _summary(points: Sequence[Point]) -> Row:
    """One method at one cost over the cases of a set."""
    errors = torch.tensor([error for point in points for error in point.errors])
    return {
        "wanted": points[0].wanted,
        "density": round(statistics.mean(point.density for point in points), 4),
        "cost": round(statistics.mean(point.cost for point in points), 4),
        "error": round(float(errors.mean()), 5),
        "worst": round(float(errors.max()), 5),
        "reached": all(point.is_reached for point in points),
    }
