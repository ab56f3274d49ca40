"""How a call's tokens are put for the operator: other tokens first, then the visual ones along their curve."""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from psa_triton.attn_mask import as_key_mask
from psa_triton.config import PSAConfig
from psa_triton.exempt import Ranges, as_prefix
from psa_triton.integrations.attend import Grid, Layout
from psa_triton.integrations.diffusers.families import Family
from psa_triton.ordering import TokenOrder, grid_method, grid_order

Visual: TypeAlias = str | Tensor
"""Where visual tokens stand in a sequence: `first`, `last`, or their positions, int64 `[V]`."""


def find_layout(
    family: Family,
    grids: tuple[Grid, ...],
    visual: Visual,
    config: PSAConfig,
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
) -> Layout | str:
    """The layout of a call, or why PSA cannot answer it. Looking at a mask waits for the device.

    Args:
        family: of the transformer.
        grids: of the visual tokens.
        visual: where they stand among those of `key` that a mask keeps.
        config: tells the curve.
        query: `[B, H, Nq, D]`.
        key: `[B, Hkv, Nk, D]`.
        attn_mask: of the call.
    """
    queries, tokens, device = query.shape[2], key.shape[2], key.device
    if family.copies:
        grids *= max(tokens // max(visual_tokens(grids), 1), 1)
    count = visual_tokens(grids)
    others = tokens - count
    if others < 0:
        return "other tokens"
    if queries != tokens and not (family.more_keys and queries == count and attn_mask is None):
        return "other keys than queries"
    try:
        keep = None if attn_mask is None else as_key_mask(attn_mask, query, key)
    except (TypeError, ValueError):
        return "attention mask"
    if keep is not None and keep.all():
        keep = None
    curve = _curve(grids, config, device)
    order = None
    if isinstance(visual, Tensor):
        order = _order(visual.to(device), tokens, curve)
    elif keep is not None or curve is not None or (visual == "first" and others > 0):
        order = _order(_places(keep, tokens, count, visual, device), tokens, curve)
    of_queries = order
    if queries < tokens:  # visual ones alone
        of_queries = None if curve is None else TokenOrder.from_permutation(curve)
    return Layout(
        grid=grids[0] if len(grids) == 1 else None,
        others=others,
        curve=curve,
        queries=of_queries,
        keys=order,
        key_mask=keep if order is None else order.apply_mask(keep),
        exempt_queries=_exempt(grids, family.exempt_queries, queries - count),
        exempt_keys=_exempt(grids, family.exempt_keys, others),
    )


def visual_tokens(grids: tuple[Grid, ...]) -> int:
    """Tokens of all grids."""
    return sum(prod(grid) for grid in grids)


def _exempt(grids: tuple[Grid, ...], exempt: tuple[int, ...], others: int) -> Ranges:
    """Where the tokens of exempt grids stand in a layout, behind those that are not visual."""
    edges = list(accumulate((prod(grid) for grid in grids), initial=others))
    return as_prefix(others) + tuple((edges[index], edges[index + 1]) for index in exempt)


def _curve(grids: tuple[Grid, ...], config: PSAConfig, device: torch.device) -> Tensor | None:
    """The orders of all grids, one after the other."""
    method = grid_method(config)
    if method is None:
        return None
    orders = [grid_order(method, grid, tile_size=config.tile_size, device=device).permutation for grid in grids]
    starts = accumulate((prod(grid) for grid in grids), initial=0)
    return torch.cat([order + start for order, start in zip(orders, starts, strict=False)])


def _order(places: Tensor, tokens: int, curve: Tensor | None) -> TokenOrder:
    """The others in their order, then the visual tokens at `places`, `[V]` or `[B, V]`, along the curve."""
    is_visual = torch.zeros(*places.shape[:-1], tokens, dtype=torch.bool, device=places.device)
    is_visual.scatter_(-1, places, True)
    others = is_visual.int().argsort(dim=-1, stable=True)[..., : tokens - places.shape[-1]]
    order = torch.cat([others, places if curve is None else places[..., curve]], dim=-1)
    return TokenOrder.from_permutation(order if order.ndim == 1 else order[:, None])


def _places(keep: Tensor | None, tokens: int, count: int, visual: str, device: torch.device) -> Tensor:
    """Positions of the visual tokens: the first or last ones that are no padding; one row where items agree."""
    rank = None if keep is None else keep.cumsum(dim=1)
    if keep is None or rank is None or (rank[:, -1] < count).any():
        # Without padding, and with visual tokens among it.
        start = 0 if visual == "first" else tokens - count
        return torch.arange(start, start + count, device=device)
    is_visual = keep & (rank <= count if visual == "first" else rank > rank[:, -1:] - count)
    places = is_visual.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    return places[0] if (places == places[:1]).all() else places
