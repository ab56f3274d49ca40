"""Rotary embedding over frames, rows and columns, as video diffusion models have it."""

from __future__ import annotations

import torch
from torch import Tensor

from tensors import Grid

_BASE = 10_000.0


def rotary_tables(grid: Grid, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's angles, float32 `[t*h*w, dim / 2]`.

    As in Wan's transformer, a third of the channel pairs is turned by the row, a third by the column, and the rest by
    the frame.
    """
    third = dim // 6
    places = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [
        place.flatten()[:, None].double() * _BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        for place, pairs in zip(places, (dim // 2 - 2 * third, third, third), strict=True)
    ]
    joined = torch.cat(angles, dim=-1)
    return joined.cos().float(), joined.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of neighbouring channels of `x [..., N, D]`; tables `[N, D / 2]`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
