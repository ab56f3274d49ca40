"""The ways to be sparse that `prefill_quality.py` compares, and how each is brought to a wanted density."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from smollm2 import Attended

from psa_triton import PSAConfig, load_preset
from psa_triton.attention import level_choice
from psa_triton.config import Importance
from psa_triton.importance import estimation_cost
from psa_triton.levels import choose_levels, read_density

GOAL_DENSITY: Final = 0.35
DENSITIES: Final = (0.25, GOAL_DENSITY, 0.5)
_TOLERANCE: Final = 0.003
"""Of the densities that are searched for."""


@dataclass(frozen=True)
class Method:
    """A way to be sparse."""

    name: str
    config: PSAConfig
    densities: tuple[float, ...] = (GOAL_DENSITY,)
    """At which it is measured; none: as `config` says."""

    @property
    def is_block_sparse(self) -> bool:
        """Whether blocks are read in full or not at all."""
        return self.config.mask_mode != "budget" and set(self.config.mask_ratios) == {0, 1}

    def at(self, density: float, samples: Sequence[Attended]) -> PSAConfig:
        """The configuration that reads about `density` of `samples`, estimation aside, or comes closest.

        Shares of importance mass are moved: a boundary `b` to `1 - strength * (1 - b)`, so that what is not read in
        full keeps its proportions.
        """
        c = self.config
        if c.mask_mode == "budget":
            return c.replace(budget=min(1.0, density + estimation_cost(c.importance, c.block_m, c.block_n)))
        weak, strong = 0.0, 1 / (1 - c.mask_ratios[1][1])
        while True:
            strength = (weak + strong) / 2
            scaled = c.replace(mask_ratios=_scale(c.mask_ratios, strength))
            found = mean_density(scaled, samples)
            if abs(found - density) < _TOLERANCE or strong - weak < 1e-3:
                return scaled
            weak, strong = (strength, strong) if found > density else (weak, strength)


def _scale(shares: Mapping[int, tuple[float, float]], strength: float) -> dict[int, tuple[float, float]]:
    ends = [max(0.0, 1 - strength * (1 - high)) for _, high in shares.values()]
    return dict(zip(shares, zip([0.0, *ends[:-1]], ends, strict=True), strict=True))


def mean_density(config: PSAConfig, samples: Sequence[Attended]) -> float:
    """Density of causal levels, mean over heads and samples."""
    return statistics.mean(_density(config, sample) for sample in samples)


def _density(config: PSAConfig, sample: Attended) -> float:
    q, k, v = sample
    levels = choose_levels(q, k, level_choice(config), v=v, is_causal=True, scale=q.shape[-1] ** -0.5)
    density = read_density(
        levels,
        block_m=config.block_m,
        block_n=config.block_n,
        query_tokens=q.shape[2],
        key_tokens=k.shape[2],
        is_causal=True,
    )
    return float(density.mean())


def _preset() -> PSAConfig:
    preset = load_preset("Qwen2.5-VL", "psa_balanced")
    assert preset is not None, "a dense preset"
    return preset


SEED: Final = _preset()
NO_CAP: Final = SEED.replace(use_sim_mask=False)
BLOCK_SPARSE: Final = NO_CAP.replace(mask_ratios={1: (0.0, 0.9), 0: (0.9, 1.0)})
BUDGET: Final = NO_CAP.replace(mask_mode="budget", budget_scope="layer")
KINDS: Final = {"levels 1/0": BLOCK_SPARSE, "seed's shares, cap": SEED, "budget": BUDGET}
BEST_IMPORTANCE: Final = "sampled"
"""Of the estimators, on this model."""

GROUPS: Final[dict[str, tuple[Method, ...]]] = {
    "levels": (
        *(
            Method(f"{kind}, n = 64", c.replace(importance=BEST_IMPORTANCE, block_n=64), DENSITIES)
            for kind, c in KINDS.items()
        ),
        Method("seed's shares, no cap, n = 64", NO_CAP.replace(importance=BEST_IMPORTANCE, block_n=64), DENSITIES),
    ),
    "importance": tuple(
        Method(f"{kind}, {importance}", c.replace(importance=importance))
        for importance in get_args(Importance)
        for kind, c in KINDS.items()
    ),
    "key blocks": tuple(
        Method(f"{kind}, n = {n}", c.replace(importance=BEST_IMPORTANCE, block_n=n))
        for kind, c in KINDS.items()
        for n in (128, 32)
    ),
    "preset Qwen2.5-VL": (
        Method("as it is", SEED, ()),
        Method("no cap", NO_CAP, ()),
        Method("first block by importance", SEED.replace(keep_first_block=False), ()),
    ),
}
"""By the question that they answer. The first group is measured on every text."""
