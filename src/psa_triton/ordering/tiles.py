"""The order of sliding tile attention (STA): 3D tiles one after another."""

from __future__ import annotations

import torch
from torch import Tensor


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
