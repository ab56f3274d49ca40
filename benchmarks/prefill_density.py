"""What a configuration reads of the attention of a whole dense run, without running it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache

from smollm2 import Attended
from torch import Tensor

from psa_triton import PSAConfig, block_importance, select_levels
from psa_triton.blocks import Blocks
from psa_triton.config import SimThresholds
from psa_triton.levels import cap_levels, exempt_levels, read_density, similarity_caps


class DenseRun:
    """q and k of the layers of a dense run; what is estimated of them is kept, so that many shares can be tried.

    Args:
        attended: of each layer.
    """

    def __init__(self, attended: Sequence[Attended]) -> None:
        self._layers = [(q, k) for q, k, _ in attended]
        self._importance = cache(self._estimate)
        self._caps = cache(self._similarity)

    def density(self, config: PSAConfig) -> float:
        """Groups read over keys visible under the causal mask: mean over queries, heads and layers.

        Args:
            config: with shares of importance (no budget, which says itself what it reads).
        """
        importances = self._importance(config.importance, config.block_m, config.block_n)
        caps: Sequence[Tensor | None] = [None] * len(importances)
        if config.use_sim_mask:
            caps = self._caps(config.block_n, config.sim_thresholds)
        return statistics.mean(
            _density(config, importance, cap, q.shape[2])
            for importance, cap, (q, _) in zip(importances, caps, self._layers, strict=True)
        )

    def _estimate(self, method: str, block_m: int, block_n: int) -> list[Tensor]:
        sizes = dict(block_m=block_m, block_n=block_n)
        return [block_importance(q, k, method=method, is_causal=True, **sizes) for q, k in self._layers]

    def _similarity(self, block_n: int, thresholds: SimThresholds) -> list[Tensor]:
        return [similarity_caps(k, block_n, thresholds) for _, k in self._layers]


def _density(config: PSAConfig, importance: Tensor, cap: Tensor | None, tokens: int) -> float:
    """Of one layer."""
    blocks = Blocks(config.block_m, config.block_n, tokens, tokens, is_causal=True)
    levels = select_levels(importance, config.mask_ratios, mode=config.mask_mode, min_full_ratio=config.min_full_ratio)
    if cap is not None:
        levels = cap_levels(levels, cap)
    levels = exempt_levels(levels, blocks, keep_first_block=config.keep_first_block)
    return float(read_density(levels, blocks).mean())
