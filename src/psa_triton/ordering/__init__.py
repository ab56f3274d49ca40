"""Token orders that put alike tokens side by side, so that blocks of them can be pooled or skipped."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.exempt import Side, count
from psa_triton.ordering.grid import grid_method, grid_order
from psa_triton.ordering.order import TokenOrder
from psa_triton.ordering.semantic import semantic_order

__all__ = ["TokenOrder", "grid_method", "grid_order", "semantic_order", "token_orders"]


def token_orders(
    q: Tensor,
    k: Tensor,
    config: PSAConfig,
    grid: tuple[int, int, int] | None,
    queries: Side,
    keys: Side,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
) -> tuple[TokenOrder, TokenOrder] | None:
    """The orders of queries and of keys, exempt tokens first; or None if tokens are taken as they come.

    Args:
        q, k: `[B, H, N, D]`.
        config: how to order.
        grid: of the tokens of each side that are not aside; None for none.
        queries, keys: which tokens are exempt.
        is_causal: an error if there is an order.
        key_mask: bool `[B, Nk]`; tokens that are left out belong to no cluster.
    """
    method = config.rearrange_method
    if not config.use_rearrange or (grid is None and method != "SemanticAware"):
        return None
    if is_causal:
        raise ValueError(
            f"is_causal: a causal mask needs tokens in their own order, got rearrange_method {method!r}; "
            f"use config.replace(use_rearrange=False)"
        )

    def order(x: Tensor, side: Side, keep: Tensor | None = None) -> TokenOrder:
        packed, prefix = _packed(side, x.device), count(side.aside)
        if method == "SemanticAware" or method == "Hybrid":
            if packed is not None:
                x, keep = packed.apply(x), packed.apply_mask(keep)
            found = semantic_order(x, method=method, grid=grid, prefix_tokens=prefix, keep=keep)
        else:
            assert grid is not None
            found = grid_order(method, grid, tile_size=config.tile_size, prefix_tokens=prefix, device=x.device)
        return found if packed is None else found.after(packed)

    of_queries = order(q, queries)
    if grid_method(config) is not None and queries == keys:
        return of_queries, of_queries
    return of_queries, order(k, keys, key_mask)


def _packed(side: Side, device: torch.device) -> TokenOrder | None:
    """Exempt tokens, then others that have no place in the grid, then its own; None if they come so."""
    pieces = side.pieces()
    if all(this[1] <= following[0] for this, following in pairwise(pieces)):
        return None
    return TokenOrder.from_permutation(torch.cat([torch.arange(*piece, device=device) for piece in pieces]))
