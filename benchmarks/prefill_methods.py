"""The ways to be sparse that `prefill_quality.py` compares, and how each is brought to a wanted density."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from choices import Choices
from shares import greatest

from psa_triton import PSAConfig, load_preset
from psa_triton.config import Importance
from psa_triton.importance import estimation_cost

WANTED_DENSITY: Final = 0.35
DENSITIES: Final = (0.25, WANTED_DENSITY, 0.5)


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

    def at(self, density: float, layers: Sequence[Choices]) -> PSAConfig:
        """The configuration that reads at most about `density` of a dense run, mean over its layers.

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
            ends = [max(0.0, 1 - (strongest - by) * (1 - high)) for _, high in c.mask_ratios.values()]
            shares = zip([0.0, *ends[:-1]], ends, strict=True)
            return c.replace(mask_ratios=dict(zip(c.mask_ratios, shares, strict=True)))

        def fits(by: float) -> bool:
            config = weakened(by)
            return statistics.mean(layer.density(layer.levels(config), config) for layer in layers) <= density

        return weakened(greatest(fits, strongest))


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


SIMPLEST: Final = ("levels 1/0", "level 1 or a mean")
"""Of `kinds`: what is not read in full is dropped, or read as one mean."""

GROUPS: Final[dict[str, tuple[Method, ...]]] = {
    "levels": tuple(
        Method(f"{kind}, n = 64", config, DENSITIES) for kind, config in kinds(BEST_IMPORTANCE, 64).items()
    ),
    "estimate included": tuple(
        Method(f"{kind}, {importance}", kinds(importance, 64)[kind], pays_for_estimate=True)
        for kind in SIMPLEST
        for importance in get_args(Importance)
    ),
    "presets": (
        *(Method(name, _preset(name), ()) for name in ("psa_text", "psa_balanced", "psa_budget")),
        Method("psa_balanced, no cap", PUBLISHED.replace(use_sim_mask=False), ()),
        Method("psa_balanced, first block by importance", PUBLISHED.replace(keep_first_block=False), ()),
    ),
    "key blocks": tuple(
        Method(f"{kind}, n = {n}", kinds(BEST_IMPORTANCE, n)[kind]) for kind in SIMPLEST for n in (128, 32)
    ),
}
"""By the question that they answer. The first three are measured on every text, at the wanted density."""
