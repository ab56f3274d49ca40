"""A way to be sparse, and its error at wanted total costs on a sample of query blocks."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from shares import bounds, scaled
from torch import Tensor

from psa_triton import PSAConfig, block_importance, pyramid_attention, select_levels
from psa_triton.blocks import Blocks
from psa_triton.importance import estimation_cost
from psa_triton.levels import cap_levels, exempt_levels, levels_of, read_density, similarity_caps
from real.inputs import InputSet
from real.sample import Sample, take_sample

Row = dict[str, Any]
"""A method on a set at a wanted cost: set, method, wanted, density, cost, error, worst, reached."""


@dataclass(frozen=True)
class Method:
    """A way to choose levels, but for how much is read."""

    name: str
    shares: Mapping[int, float] | None
    """Of the blocks, or of the mass, that levels get, times one factor that the cost decides; None: by a budget."""
    rest: int = 0
    """Level of what is left over; 0 drops it."""
    mode: Literal["topk", "thresholdbound"] = "topk"
    budget_scope: Literal["row", "head", "layer"] = "row"
    block_n: int = 64
    order: Literal["raster", "Gilbert", "STA", "SemanticAware", "Hybrid"] = "Gilbert"
    importance: str = "pooled"
    """An estimator, or `exact`: the true attention mass, at no cost. No method can have it; it shows what is left."""
    use_sim_mask: bool = False
    pool_correction: str = "none"

    @property
    def coarsest(self) -> int:
        """Level."""
        return max(*(self.shares or {8: 1.0}), self.rest)


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
    is_exact = method.importance == "exact"
    estimate = 0.0 if is_exact else estimation_cost(method.importance, sample.block_m, method.block_n)
    overhead = sample.order_cost + estimate
    choose = _by_budget if method.shares is None else _by_shares
    levels_within = choose(sample, method)
    points = []
    for wanted in costs:
        if method.shares is None and wanted <= overhead:
            continue
        levels = levels_within(wanted - overhead)
        found = pyramid_attention(
            *(sample.q, sample.k, sample.v, levels),
            block_m=sample.block_m,
            block_n=method.block_n,
            is_causal=sample.is_causal,
            scale=sample.scale,
            pool_correction=method.pool_correction,
        )
        read = _read(sample, method, levels)
        points.append(Point(wanted, read, read + overhead, relative_errors(found, sample.expected)))
    return points


def relative_errors(found: Tensor, expected: Tensor) -> tuple[float, ...]:
    """Of each head of `[1, H, N, D]`."""
    return tuple(((found - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1)))[0].tolist())


def _by_budget(sample: Sample, method: Method) -> Callable[[float], Tensor]:
    """Levels that read at most a density, the estimate not counted."""
    config = PSAConfig(
        mask_mode="budget",
        block_m=sample.block_m,
        block_n=method.block_n,
        budget_scope=method.budget_scope,
        importance=method.importance,
        keep_first_block=sample.is_causal,
    )
    estimate = estimation_cost(method.importance, sample.block_m, method.block_n)

    def within(density: float) -> Tensor:
        wanted = config.replace(budget=min(1.0, density + estimate))
        return levels_of(sample.q, sample.k, sample.v, wanted, scale=sample.scale, is_causal=sample.is_causal)

    return within


def _by_shares(sample: Sample, method: Method) -> Callable[[float], Tensor]:
    """Likewise, by the largest factor; under a causal mask the first key block is read in full."""
    assert method.shares is not None
    shares = method.shares
    if method.importance == "exact":
        importance = sample.exact_importance(method.block_n)
    else:
        blocks = dict(block_m=sample.block_m, block_n=method.block_n)
        importance = block_importance(
            sample.q, sample.k, method=method.importance, scale=sample.scale, is_causal=sample.is_causal, **blocks
        )
    thresholds = PSAConfig().sim_thresholds
    caps = similarity_caps(sample.k, method.block_n, thresholds) if method.use_sim_mask else None

    def levels(factor: float) -> Tensor:
        chosen = select_levels(importance, scaled(shares, factor, method.rest), mode=method.mode)
        if caps is not None:
            chosen = cap_levels(chosen, caps)
        return exempt_levels(chosen, _blocks(sample, method), keep_first_block=sample.is_causal)

    def within(density: float) -> Tensor:
        fitting, _ = bounds(lambda factor: _read(sample, method, levels(factor)) <= density, 1.0 / shares[1])
        return levels(fitting)

    return within


def _read(sample: Sample, method: Method, levels: Tensor) -> float:
    return float(read_density(levels, _blocks(sample, method)).mean())


def _blocks(sample: Sample, method: Method) -> Blocks:
    return Blocks.of(sample.q, sample.k, sample.block_m, method.block_n, sample.is_causal)


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
