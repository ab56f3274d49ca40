"""The ways to be sparse that `prefill_quality.py` compares, and how each is brought to a wanted density."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from psa_triton import PSAConfig, load_preset
from psa_triton.attention import level_choice
from psa_triton.importance import estimation_cost
from psa_triton.levels import choose_levels, read_density

Sample = tuple[Tensor, Tensor, Tensor]
"""q, k and v of one layer."""

PRESET: Final[PSAConfig] = load_preset("Qwen2.5-VL", "psa_balanced")
TOLERANCE: Final = 0.004
"""Of the densities that are searched for."""


@dataclass(frozen=True)
class Method:
    """A way to be sparse, at any density."""

    group: str
    """The question that it helps to answer."""
    name: str
    config: PSAConfig
    """At some density; its shares are moved to reach another."""

    def at(self, density: float, samples: Sequence[Sample]) -> PSAConfig:
        """The configuration whose levels cost `density` on `samples`, estimation aside, or come closest.

        The mass that is not read in full is scaled: boundary `b` of a share moves to `1 - strength * (1 - b)`.
        """
        if self.config.mask_mode == "budget":
            c = self.config
            return c.replace(budget=min(1.0, density + estimation_cost(c.importance, c.block_m, c.block_n)))
        finest = self.config.mask_ratios[1][1]
        low, high = 0.0, 1 / (1 - finest)
        config = self.config
        while high - low > 1e-3:
            strength = (low + high) / 2
            config = self.config.replace(mask_ratios=scale_shares(self.config.mask_ratios, strength))
            found = mean_density(config, samples)
            if abs(found - density) < TOLERANCE:
                break
            low, high = (strength, high) if found > density else (low, strength)
        return config


def scale_shares(shares: Mapping[int, tuple[float, float]], strength: float) -> dict[int, tuple[float, float]]:
    """`shares` with every boundary's distance to 1 multiplied by `strength`."""

    def move(boundary: float) -> float:
        return max(0.0, 1 - strength * (1 - boundary))

    ends = [move(high) for _, high in shares.values()]
    return dict(zip(shares, zip([0.0, *ends[:-1]], ends, strict=True), strict=True))


def mean_density(config: PSAConfig, samples: Sequence[Sample]) -> float:
    """Density of causal levels, mean over heads and samples."""
    return statistics.mean(_density(config, *sample) for sample in samples)


def _density(config: PSAConfig, q: Tensor, k: Tensor, v: Tensor) -> float:
    levels = choose_levels(q, k, level_choice(config), v=v, is_causal=True, scale=q.shape[-1] ** -0.5)
    sizes = dict(block_m=config.block_m, block_n=config.block_n, query_tokens=q.shape[2], key_tokens=k.shape[2])
    return float(read_density(levels, is_causal=True, **sizes).mean())
