"""What one attention attends with, and the token orders that a configuration puts it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.exempt import Side, find_sides
from psa_triton.impl import Impl
from psa_triton.inputs import check_attention_inputs
from psa_triton.levels import levels_of, read_density
from psa_triton.ordering import TokenOrder, token_orders

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """Queries, keys and values of one attention call, tokens in their own order.

    Raises:
        TypeError: dtypes or devices that differ.
        ValueError: shapes that do not belong together, a grid that is not that of the tokens, or a number in q, k or v
            that is not finite.
    """

    q: Tensor
    """`[B, Hq, Nq, D]`."""
    k: Tensor
    """`[B, Hkv, Nk, D]`."""
    v: Tensor | None = None
    """`[B, Hkv, Nk, D]`; None where only the choice of levels is of interest."""
    grid: Grid | None = None
    """Visual tokens as (frames, height, width), in raster order after the prefix; None where there is none."""
    prefix_tokens: int = 0
    """Text tokens before the visual ones."""
    is_causal: bool = False
    """Whether query `i` sees keys up to `i + Nk - Nq` alone."""

    def __post_init__(self) -> None:
        check_attention_inputs(self.q, self.k, *(() if self.v is None else (self.v,)))
        for name, x in (("q", self.q), ("k", self.k), ("v", self.v)):
            if x is not None and not torch.isfinite(x).all():
                raise ValueError(f"{name}: expected finite numbers, got some NaN or inf")
        self.sides()
        if self.is_causal and self.q.shape[2] > self.k.shape[2]:
            raise ValueError(
                f"is_causal: expected at most as many queries as keys, got {self.q.shape[2]} and {self.k.shape[2]}"
            )

    def sides(self) -> tuple[Side, Side]:
        """The queries and the keys, and which are exempt."""
        _, queries, keys = find_sides(self.q.shape[2], self.k.shape[2], self.grid, self.prefix_tokens)
        return queries, keys

    def batch_entry(self, index: int) -> AttentionInputs:
        """One entry of the batch, as a batch of one."""
        q, k, v = (None if x is None else x[index : index + 1] for x in (self.q, self.k, self.v))
        assert q is not None and k is not None
        return replace(self, q=q, k=k, v=v)

    def heads(self, chosen: Sequence[int]) -> AttentionInputs:
        """Some query heads, each with a key head of its own."""
        group = self.q.shape[1] // self.k.shape[1]
        own = [head // group for head in chosen]
        v = None if self.v is None else self.v[:, own]
        return replace(self, q=self.q[:, list(chosen)], k=self.k[:, own], v=v)

    def check(self, config: PSAConfig) -> None:
        """Check that they can be attended with in this way.

        Raises:
            ValueError: tokens are to be reordered in spite of a causal mask.
        """
        if self.is_causal and self._reordered(config):
            raise ValueError(
                f"is_causal: a causal mask needs tokens in their own order, and the preset's is "
                f"{config.rearrange_method}; take one with use_rearrange: false"
            )

    def orders(self, config: PSAConfig) -> tuple[TokenOrder, TokenOrder]:
        """The orders in which queries and keys are cut into blocks, as `psa_attention` has them."""
        orders = token_orders(self.q, self.k, config, self.grid, *self.sides())
        return (_as_they_come(self.q), _as_they_come(self.k)) if orders is None else orders

    def ordered(self, for_queries: TokenOrder, for_keys: TokenOrder) -> AttentionInputs:
        """Tokens in these orders, and so no longer in the grid's."""
        q, k = for_queries.apply(self.q), for_keys.apply(self.k)
        return replace(self, q=q, k=k, v=None if self.v is None else for_keys.apply(self.v))

    def choose_levels(self, config: PSAConfig, impl: Impl = "auto") -> Tensor:
        """As `psa_attention` does, for tokens as they stand, exempt ones first: int8 `[B, Hq, nq, nk]`."""
        queries, keys = self.sides()
        return levels_of(
            self.q,
            self.k,
            self.v,
            config,
            impl=impl,
            is_causal=self.is_causal,
            exempt_queries=queries.front,
            exempt_keys=keys.front,
        )

    def density(self, levels: Tensor, config: PSAConfig) -> Tensor:
        """Groups read over keys visible, float32 `[B, Hq]`."""
        return read_density(levels, Blocks.of(self.q, self.k, config.block_m, config.block_n, self.is_causal))

    def _reordered(self, config: PSAConfig) -> bool:
        return config.use_rearrange and (self.grid is not None or config.rearrange_method == "SemanticAware")


def _as_they_come(x: Tensor) -> TokenOrder:
    places = torch.arange(x.shape[2], device=x.device)
    return TokenOrder(places, places)
