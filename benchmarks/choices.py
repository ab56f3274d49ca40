"""The levels that the library chooses for one attention, by many configurations, and what they read of it."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from psa_triton import PSAConfig, block_importance
from psa_triton.blocks import Blocks
from psa_triton.impl import resolve_impl
from psa_triton.levels import choose_levels, read_density


class Choices:
    """Levels of one attention by many configurations; importance is estimated once for each way to do it.

    Args:
        q, k, v: `[1, H, N, D]`, in order.
        is_causal: whether there is a causal mask.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> None:
        self._tensors, self._is_causal = (q, k, v), is_causal
        self.importance = cache(self._importance)

    def levels(self, config: PSAConfig, importance: Tensor | None = None) -> Tensor:
        """int8 `[1, H, nq, nk]`, by the given importance or by what the configuration's estimator finds."""
        q, k, v = self._tensors
        if importance is None:
            importance = self.importance(config.importance, config.block_m, config.block_n)
        how = dict(scale=q.shape[-1] ** -0.5, impl=resolve_impl("auto", q))
        return choose_levels(importance, q, k, v, self.blocks(config), config, **how)

    def density(self, levels: Tensor, config: PSAConfig) -> float:
        """Groups read over keys visible."""
        return float(read_density(levels, self.blocks(config)).mean())

    def blocks(self, config: PSAConfig) -> Blocks:
        q, k, _ = self._tensors
        return Blocks.of(q, k, config.block_m, config.block_n, self._is_causal)

    def _importance(self, method: str, block_m: int, block_n: int) -> Tensor:
        q, k, _ = self._tensors
        return block_importance(q, k, block_m=block_m, block_n=block_n, method=method, is_causal=self._is_causal)
