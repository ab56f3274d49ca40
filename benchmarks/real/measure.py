"""Error of a method at a wanted cost, on a sample of query blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from psa_triton import PSAConfig, block_importance, density, pyramid_attention, select_levels
from psa_triton.importance import estimation_cost
from psa_triton.levels import cap_levels, similarity_caps
from real.methods import Method
from real.sample import Sample

_BISECTIONS = 12


@dataclass(frozen=True)
class Point:
    """What a method reached on an input."""

    wanted: float
    """Total cost that was asked for, as a share of dense attention's."""
    density: float
    """Groups read over keys."""
    cost: float
    """Density, and what the estimate and the order cost."""
    errors: tuple[float, ...]
    """Of each head: L2 norm of the difference to dense attention over that of dense attention."""

    @property
    def is_reached(self) -> bool:
        """Whether the method can be had at the wanted cost: some cost more, however little they read."""
        return self.cost <= self.wanted


def measure_method(sample: Sample, method: Method, costs: tuple[float, ...]) -> list[Point]:
    """A point for every wanted total cost."""
    overhead = sample.order_cost
    if method.importance == "exact":
        importance = sample.exact_importance(method.block_n)
    else:
        importance = block_importance(
            sample.q,
            sample.k,
            block_m=sample.block_m,
            block_n=method.block_n,
            method=method.importance,
            scale=sample.scale,
        )
        overhead += estimation_cost(method.importance, sample.block_m, method.block_n)
    caps = _caps(sample.k, method)
    return [_point(sample, method, importance, caps, overhead, wanted) for wanted in costs]


def relative_errors(found: Tensor, expected: Tensor) -> tuple[float, ...]:
    """Of each head of `[1, H, N, D]`."""
    return tuple(((found - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1)))[0].tolist())


def _point(
    sample: Sample, method: Method, importance: Tensor, caps: Tensor | None, overhead: float, wanted: float
) -> Point:
    """The most that `wanted` pays for, or the least there is."""
    levels = _affordable_levels(method, importance, caps, wanted - overhead)
    found = pyramid_attention(
        sample.q, sample.k, sample.v, levels, block_m=sample.block_m, block_n=method.block_n, scale=sample.scale
    )
    read = _read(levels)
    return Point(wanted, read, read + overhead, relative_errors(found, sample.expected))


def _affordable_levels(method: Method, importance: Tensor, caps: Tensor | None, budget: float) -> Tensor:
    """Levels of the largest factor that reads at most `budget` of the keys."""
    low, high = 0.0, method.largest_factor
    most = _levels(method, importance, caps, high)
    if _read(most) <= budget:
        return most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = _read(_levels(method, importance, caps, middle)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return _levels(method, importance, caps, low)


def _levels(method: Method, importance: Tensor, caps: Tensor | None, factor: float) -> Tensor:
    levels = select_levels(importance, method.ratios(factor), mode=method.mode)
    return levels if caps is None else cap_levels(levels, caps)


def _caps(k: Tensor, method: Method) -> Tensor | None:
    if not method.use_sim_mask:
        return None
    return similarity_caps(k, method.block_n, PSAConfig().sim_thresholds)


def _read(levels: Tensor) -> float:
    """Share of the keys that is read; all blocks are whole and nothing is hidden."""
    return float(density(levels).mean())
