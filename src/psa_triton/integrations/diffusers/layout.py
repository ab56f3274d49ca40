"""How a call's tokens are put for the operator: other tokens first, then the visual ones along their curve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from psa_triton.attn_mask import as_key_mask
from psa_triton.config import PSAConfig
from psa_triton.exempt import Ranges, as_prefix
from psa_triton.integrations.diffusers.families import Grid
from psa_triton.ordering import TokenOrder, grid_method, grid_order
from psa_triton.ordering.grid import GridMethod

Visual: TypeAlias = str | Tensor
"""Where visual tokens stand in a sequence: `first`, `last`, or their positions, int64 `[V]`."""


class Unfit(Exception):
    """A call that PSA cannot answer; says why in the words of the statistics."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of a sequence go."""

    others: int
    """Tokens that are not visual: the first ones."""
    queries: TokenOrder | None
    """Of `[N]` or `[B, 1, N]`; None where all stay in place."""
    keys: TokenOrder | None
    """The same, but where there are more keys than queries."""
    key_mask: Tensor | None
    """bool `[B, N]`, False for padding, in this order."""


def find_layout(
    grids: tuple[Grid, ...], visual: Visual, config: PSAConfig, query: Tensor, key: Tensor, attn_mask: Tensor | None
) -> Layout:
    """The layout of a call. Looking at a mask waits for the device.

    Args:
        grids: of the visual tokens.
        visual: where they stand among those of `key` that a mask keeps.
        config: tells the curve.
        query: `[B, H, Nq, D]`.
        key: `[B, Hkv, Nk, D]`.
        attn_mask: of the call.

    Raises:
        Unfit: the mask says more than which keys are padding.
    """
    tokens, count = key.shape[2], sum(prod(grid) for grid in grids)
    method, tile_size, device = grid_method(config), config.tile_size, key.device
    keep = None if attn_mask is None else _padding(attn_mask, query, key)
    if keep is None and isinstance(visual, str):
        order = _plain_order(grids, method, tile_size, tokens, visual == "last", device)
    else:
        places = visual if isinstance(visual, Tensor) else _places(keep, tokens, count, visual)
        order = _order(places.to(device), tokens, _curve(grids, method, tile_size, device))
    keep = keep if order is None else order.apply_mask(keep)
    of_queries = order
    if query.shape[2] < tokens:  # visual ones alone
        of_queries = _plain_order(grids, method, tile_size, count, False, device)
    return Layout(tokens - count, of_queries, order, keep)


def exempt_tokens(grids: tuple[Grid, ...], exempt: tuple[int, ...], others: int) -> Ranges:
    """Where the tokens of exempt grids stand in a layout, behind those that are not visual."""
    edges = list(accumulate((prod(grid) for grid in grids), initial=others))
    return as_prefix(others) + tuple((edges[index], edges[index + 1]) for index in exempt)


def visual_order(grids: tuple[Grid, ...], config: PSAConfig) -> TokenOrder | None:
    """The order of the visual tokens among themselves, on the CPU; None for their own."""
    curve = _curve(grids, grid_method(config), config.tile_size, torch.device("cpu"))
    return None if curve is None else TokenOrder.from_permutation(curve)


@lru_cache(maxsize=32)
def _curve(
    grids: tuple[Grid, ...], method: GridMethod | None, tile_size: tuple[int, int, int], device: torch.device
) -> Tensor | None:
    """The orders of all grids, one after the other."""
    if method is None:
        return None
    orders = [grid_order(method, grid, tile_size=tile_size, device=device).permutation for grid in grids]
    starts = [sum(prod(grid) for grid in grids[:index]) for index in range(len(grids))]
    # A tensor made in inference mode could never be used under autograd, which a later caller may want.
    with torch.inference_mode(False):
        return torch.cat([order + start for order, start in zip(orders, starts, strict=True)])


@lru_cache(maxsize=32)
def _plain_order(
    grids: tuple[Grid, ...],
    method: GridMethod | None,
    tile_size: tuple[int, int, int],
    tokens: int,
    last: bool,
    device: torch.device,
) -> TokenOrder | None:
    """Of a sequence without padding, whose visual tokens stand together."""
    curve, count = _curve(grids, method, tile_size, device), sum(prod(grid) for grid in grids)
    others = tokens - count
    if curve is None and (last or others == 0):
        return None
    with torch.inference_mode(False):
        start = others if last else 0
        return _order(torch.arange(start, start + count, device=device), tokens, curve)


def _order(places: Tensor, tokens: int, curve: Tensor | None) -> TokenOrder:
    """The others in their order, then the visual tokens at `places`, `[V]` or `[B, V]`, along the curve."""
    is_visual = torch.zeros(*places.shape[:-1], tokens, dtype=torch.bool, device=places.device)
    is_visual.scatter_(-1, places, True)
    others = is_visual.int().argsort(dim=-1, stable=True)[..., : tokens - places.shape[-1]]
    order = torch.cat([others, places if curve is None else places[..., curve]], dim=-1)
    return TokenOrder.from_permutation(order if order.ndim == 1 else order[:, None])


def _padding(attn_mask: Tensor, query: Tensor, key: Tensor) -> Tensor | None:
    """Which keys are no padding, bool `[B, Nk]`; None if none is."""
    try:
        keep = as_key_mask(attn_mask, query, key)
    except (TypeError, ValueError) as error:
        raise Unfit("attention mask") from error
    return None if keep.all() else keep


def _places(keep: Tensor | None, tokens: int, count: int, visual: str) -> Tensor:
    """Positions of the visual tokens: the first or last ones that are no padding; one row where items agree."""
    assert keep is not None  # else positions were given
    rank = keep.cumsum(dim=1)
    kept = rank[:, -1:]
    if (kept < count).any():  # visual tokens among them: they are where they would be without a mask
        start = 0 if visual == "first" else tokens - count
        return torch.arange(start, start + count, device=keep.device)
    is_visual = keep & (rank <= count if visual == "first" else rank > kept - count)
    places = is_visual.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    return places[0] if (places == places[:1]).all() else places
