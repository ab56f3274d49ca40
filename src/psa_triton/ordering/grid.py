"""The orders that a grid of visual tokens alone decides: along a space-filling curve, or by 3D tiles."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.operators import operator
from psa_triton.ordering.gilbert import gilbert_order
from psa_triton.ordering.order import TokenOrder

GridMethod = Literal["Gilbert", "STA"]


def grid_method(config: PSAConfig) -> GridMethod | None:
    """The order that follows from a grid alone; None where tokens keep theirs, or are clustered by what they hold."""
    method = config.rearrange_method
    return method if config.use_rearrange and (method == "Gilbert" or method == "STA") else None


def grid_order(
    method: GridMethod,
    grid: tuple[int, int, int],
    *,
    tile_size: tuple[int, int, int] = (2, 8, 8),
    prefix_tokens: int = 0,
    device: torch.device | str = "cpu",
) -> TokenOrder:
    """The order of visual tokens that their grid alone decides. Cached: equal arguments give the same object.

    Args:
        method: `Gilbert`, along a space-filling curve, or `STA`, by 3D tiles.
        grid: visual tokens along (t, h, w), given in raster order: t-major, then h, then w.
        tile_size: STA only, tokens of a tile along (t, h, w).
        prefix_tokens: tokens before the visual ones; they keep their place.
        device: where the order is put.

    Returns:
        An order of `prefix_tokens + t * h * w` tokens, the same for all heads.
    """
    tiles = tile_size if method == "STA" else None
    made_here = torch.empty(0, device=device)
    # A device without an index means the current one, which may differ at the next call.
    device = made_here.device
    if torch.compiler.is_compiling() or type(made_here) is not Tensor:  # fake tensors go with their like alone
        return TokenOrder(*_traced_grid_order(method, grid, tiles or (), prefix_tokens, device))
    return _grid_order(method, grid, tiles, prefix_tokens, device)


@lru_cache(maxsize=32)
def _grid_order(
    method: GridMethod,
    grid: tuple[int, int, int],
    tile_size: tuple[int, int, int] | None,
    prefix_tokens: int,
    device: torch.device,
) -> TokenOrder:
    # A tensor made in inference mode could never be used under autograd, which a later caller may want.
    with torch.inference_mode(False):
        permutation = gilbert_order(grid) if tile_size is None else tile_order(grid, tile_size)
        order = TokenOrder.from_permutation(permutation).with_prefix(prefix_tokens)
        return TokenOrder(order.permutation.to(device), order.inverse.to(device))


def _fake(method, grid, tile_size, prefix_tokens, device):
    t, h, w = grid
    return tuple(torch.empty(prefix_tokens + t * h * w, dtype=torch.int64, device=device) for _ in range(2))


@operator("grid_order", _fake, vmap=False)
def _traced_grid_order(
    method: str, grid: list[int], tile_size: list[int], prefix_tokens: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`_grid_order` as one operator of a graph, whose results are its own: the cached ones must not be written to."""
    t, h, w = grid
    order = _grid_order(method, (t, h, w), tuple(tile_size) or None, prefix_tokens, device)
    return order.permutation.clone(), order.inverse.clone()


def tile_order(grid: tuple[int, int, int], tile_size: tuple[int, int, int]) -> Tensor:
    """Order of a grid's tokens by tile: tiles in raster order, raster order inside each.

    Args:
        grid: tokens along (t, h, w), each at least 1.
        tile_size: tokens of a tile along (t, h, w), each at least 1. The last tiles along an axis may be ragged.

    Returns:
        int64 `[t * h * w]` on the CPU: raster index (t-major, then h, then w) of the token at each position.
    """
    t, h, w = (torch.arange(length, device="cpu") // tile for length, tile in zip(grid, tile_size, strict=True))
    tiles_h, tiles_w = int(h[-1]) + 1, int(w[-1]) + 1
    tile = (t[:, None, None] * tiles_h + h[:, None]) * tiles_w + w
    return tile.flatten().argsort(stable=True)
