"""What is compared: one way to be sparse a `Method`, grouped by the question that each group answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Ratios = dict[int, tuple[float, float]]

BLOCK_SPARSE: Final = {1: 1.0}
SEED: Final = {1: 0.10, 2: 0.05, 8: 0.20}
"""The default config's: cost .15."""
WIDE: Final = {1: 0.05, 2: 0.05, 4: 0.15, 8: 0.30}
"""Cost .15 too, with half of the full blocks spent on coarse levels for many more."""
SEED_MASS: Final = {1: 0.4, 2: 0.1, 4: 0.1, 8: 0.2}
"""Shares of the importance mass: those of the seed's `psa_balanced` for Wan."""


@dataclass(frozen=True)
class Method:
    """A way to choose levels, but for how much is read."""

    name: str
    weights: dict[int, float]
    """Shares of the blocks, or of the mass, that levels get; multiplied by one factor to reach a wanted cost."""
    rest: int = 0
    """Level of what is left over; 0 drops it."""
    mode: Literal["topk", "thresholdbound"] = "topk"
    block_n: int = 64
    order: Literal["raster", "Gilbert", "STA", "SemanticAware", "Hybrid"] = "Gilbert"
    importance: str = "pooled"
    """An estimator, or `exact`: the true attention mass, at no cost. No method can have it; it shows what is left."""
    use_sim_mask: bool = False

    @property
    def largest_factor(self) -> float:
        """The factor at which everything is read in full."""
        return 1.0 / self.weights[1]

    def ratios(self, factor: float) -> Ratios:
        """`weights` times `factor` as far as there is room, and `rest` for the rest."""
        ratios, start = {}, 0.0
        for level, weight in self.weights.items():
            end = min(start + weight * factor, 1.0)
            ratios[level] = (start, end)
            start = end
        return ratios | {self.rest: (start, 1.0)}


_BLOCKS = Method("block sparsity (levels 1/0)", BLOCK_SPARSE)
_SEED = Method("seed's shares", SEED)
BASE: Final = Method("wide shares", WIDE)
"""What groups on blocks, order, estimator and cap vary."""


GROUPS: Final[dict[str, tuple[Method, ...]]] = {
    "levels": (_BLOCKS, _SEED, Method("seed's shares of mass", SEED_MASS, mode="thresholdbound"), BASE),
    "instead of dropping": (
        _SEED,
        *(replace(_SEED, name=f"seed's shares, rest at {level}", rest=level) for level in (16, 32, 64)),
        BASE,
        replace(BASE, name="wide shares, rest at 64", rest=64),
    ),
    "key blocks": tuple(
        replace(method, name=f"{name}, n = {n}", block_n=n)
        for name, method in (("block sparsity", _BLOCKS), ("wide", BASE))
        for n in (128, 64, 32)
    ),
    "token order": tuple(
        replace(BASE, name=order, order=order) for order in ("raster", "Gilbert", "STA", "SemanticAware", "Hybrid")
    ),
    "estimator": tuple(
        replace(BASE, name=name, importance=name)
        for name in ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative", "exact")
    ),
    "similarity cap": tuple(
        replace(method, name=f"{method.name}, {'with' if cap else 'without'} cap", use_sim_mask=cap)
        for method in (_SEED, BASE)
        for cap in (False, True)
    ),
}
"""The same way may stand in several groups under other names; it is measured once."""

WITHOUT_GRID_CHOICES: Final = ("levels", "instead of dropping", "estimator")
"""Groups measured on inputs too small or too odd for the questions of the others."""


def settings(method: Method) -> Method:
    """The method without its name: what makes two the same."""
    return replace(method, name="")
