"""The ways to be sparse that `prefill_quality.py` compares, and how each is brought to a wanted density."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, get_args

from shares import Ratios, bounds
from smollm2 import Attended
from torch import Tensor

from psa_triton import PSAConfig, block_importance, load_preset, select_levels
from psa_triton.blocks import Blocks
from psa_triton.config import Importance, SimThresholds
from psa_triton.importance import estimation_cost
from psa_triton.levels import cap_levels, exempt_levels, read_density, similarity_caps

WANTED_DENSITY: Final = 0.35
DENSITIES: Final = (0.25, WANTED_DENSITY, 0.5)


class DenseRun:
    """q and k of the layers of a dense run; what is estimated of them is kept, so that many shares can be tried."""

    def __init__(self, attended: Sequence[Attended]) -> None:
        self._layers = [(q, k) for q, k, _ in attended]
        self._importance = cache(self._estimate)
        self._caps = cache(self._similarity)

    def density(self, config: PSAConfig) -> float:
        """What shares of importance read under the causal mask: mean over queries, heads and layers."""
        importances = self._importance(config.importance, config.block_m, config.block_n)
        caps = self._caps(config.block_n, config.sim_thresholds) if config.use_sim_mask else [None] * len(importances)
        found = []
        for importance, cap, (q, _) in zip(importances, caps, self._layers, strict=True):
            choice = dict(mode=config.mask_mode, min_full_ratio=config.min_full_ratio)
            levels = select_levels(importance, config.mask_ratios, **choice)
            if cap is not None:
                levels = cap_levels(levels, cap)
            blocks = Blocks(config.block_m, config.block_n, q.shape[2], q.shape[2], is_causal=True)
            levels = exempt_levels(levels, blocks, keep_first_block=config.keep_first_block)
            found.append(float(read_density(levels, blocks).mean()))
        return statistics.mean(found)

    def _estimate(self, method: str, block_m: int, block_n: int) -> list[Tensor]:
        sizes = dict(block_m=block_m, block_n=block_n)
        return [block_importance(q, k, method=method, is_causal=True, **sizes) for q, k in self._layers]

    def _similarity(self, block_n: int, thresholds: SimThresholds) -> list[Tensor]:
        return [similarity_caps(k, block_n, thresholds) for _, k in self._layers]


@dataclass(frozen=True)
class Method:
    """A way to be sparse."""

    name: str
    config: PSAConfig
    densities: tuple[float, ...] = (WANTED_DENSITY,)
    """At which it is measured; none: as `config` says."""
    pays_for_estimate: bool = False
    """Whether the densities include the estimate of importance."""

    @property
    def is_block_sparse(self) -> bool:
        """Whether blocks are read in full or not at all."""
        return self.config.mask_mode != "budget" and set(self.config.mask_ratios) == {0, 1}

    def at(self, density: float, run: DenseRun) -> PSAConfig:
        """The configuration that reads at most about `density` of a run.

        Shares of importance mass are moved: a boundary `b` to `1 - strength * (1 - b)`, so that what is not read in
        full keeps its proportions.
        """
        c = self.config
        estimate = estimation_cost(c.importance, c.block_m, c.block_n)
        if self.pays_for_estimate:
            density -= estimate
        if c.mask_mode == "budget":
            return c.replace(budget=min(1.0, density + estimate))
        strongest = 1 / (1 - c.mask_ratios[1][1])

        def weakened(by: float) -> PSAConfig:
            return c.replace(mask_ratios=_moved(c.mask_ratios, strongest - by))

        return weakened(bounds(lambda by: run.density(weakened(by)) <= density, strongest)[0])


def _moved(shares: Ratios, strength: float) -> Ratios:
    ends = [max(0.0, 1 - strength * (1 - high)) for _, high in shares.values()]
    return dict(zip(shares, zip([0.0, *ends[:-1]], ends, strict=True), strict=True))


def _preset(name: str) -> PSAConfig:
    preset = load_preset("Qwen2.5-VL", name)
    assert preset is not None, "a dense preset"
    return preset


PUBLISHED: Final = _preset("psa_balanced")
BEST_IMPORTANCE: Final = "finely_sampled"
"""Of the estimators, on this model."""


def kinds(importance: str, block_n: int) -> dict[str, PSAConfig]:
    """What the levels may be; each at some density."""
    published = PUBLISHED.replace(importance=importance, block_n=block_n)
    no_cap = published.replace(use_sim_mask=False)
    return {
        "levels 1/0": no_cap.replace(mask_ratios={1: (0.0, 0.9), 0: (0.9, 1.0)}),
        "level 1 or a mean": no_cap.replace(mask_ratios={1: (0.0, 0.9), min(64, block_n): (0.9, 1.0)}),
        "default shares, cap": published,
        "default shares, no cap": no_cap,
        "budget": no_cap.replace(mask_mode="budget", budget_scope="layer"),
    }


GROUPS: Final[dict[str, tuple[Method, ...]]] = {
    "levels": tuple(
        Method(f"{kind}, n = 64", config, DENSITIES) for kind, config in kinds(BEST_IMPORTANCE, 64).items()
    ),
    "estimate included": tuple(
        Method(f"{kind}, {importance}", kinds(importance, 64)[kind], pays_for_estimate=True)
        for kind in ("levels 1/0", "level 1 or a mean")
        for importance in get_args(Importance)
    ),
    "presets": (
        *(Method(name, _preset(name), ()) for name in ("psa_text", "psa_balanced", "psa_budget")),
        Method("psa_balanced, no cap", PUBLISHED.replace(use_sim_mask=False), ()),
        Method("psa_balanced, first block by importance", PUBLISHED.replace(keep_first_block=False), ()),
    ),
    "key blocks": tuple(
        Method(f"{kind}, n = {n}", kinds(BEST_IMPORTANCE, n)[kind])
        for kind in ("levels 1/0", "level 1 or a mean")
        for n in (128, 32)
    ),
}
"""By the question that they answer. The first three are measured on every text, at the wanted density."""
