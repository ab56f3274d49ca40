"""Token orders that put alike tokens side by side, so that blocks of them can be pooled or skipped."""

from __future__ import annotations

from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.ordering.grid import grid_method, grid_order
from psa_triton.ordering.order import TokenOrder
from psa_triton.ordering.semantic import semantic_order

__all__ = ["TokenOrder", "grid_method", "grid_order", "semantic_order", "token_orders"]


def token_orders(
    q: Tensor,
    k: Tensor,
    config: PSAConfig,
    grid: tuple[int, int, int] | None,
    prefix_tokens: int,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
) -> tuple[TokenOrder, TokenOrder] | None:
    """The orders of queries and of keys, or None if tokens are taken as they come."""
    method = config.rearrange_method
    if not config.use_rearrange or (grid is None and method != "SemanticAware"):
        return None
    if is_causal:
        raise ValueError(
            f"is_causal: a causal mask needs tokens in their own order, got rearrange_method {method!r}; "
            f"use config.replace(use_rearrange=False)"
        )
    if method == "SemanticAware" or method == "Hybrid":
        return (
            semantic_order(q, method=method, grid=grid, prefix_tokens=prefix_tokens),
            semantic_order(k, method=method, grid=grid, prefix_tokens=prefix_tokens, keep=key_mask),
        )
    assert grid is not None
    order = grid_order(method, grid, tile_size=config.tile_size, prefix_tokens=prefix_tokens, device=q.device)
    return order, order
