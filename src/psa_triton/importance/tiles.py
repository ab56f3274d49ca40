"""Hardware choices of the scoring kernel: rows of a tile, warps, loads in flight. They do not change results."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from psa_triton.dots import current_backend


@dataclass(frozen=True)
class Tiles:
    """How the scoring kernel cuts its work."""

    m: int
    """Query rows of a tile."""
    n: int
    """Key rows of a tile."""
    part: int
    """Channels of a token that are multiplied at a time."""
    warps: int
    """Warps that share a tile."""
    stages: int
    """Tiles whose loads are in flight."""


def dim_tile(dim: int) -> int:
    """Head dimension as matrix units take it: the next power of two, at least 16."""
    return max(triton.next_power_of_2(dim), 16)


def scoring_tiles(dim: int, width: int, dtype: torch.dtype) -> Tiles:
    """Tiles of the scoring kernel for rows of `width` tokens, on what this build of torch runs on.

    Chosen so that nothing spills and several programs fit on a multiprocessor: one multiplies while another reduces.
    """
    is_hip = current_backend() == "hip"
    if dtype == torch.float32:
        return Tiles(64, 64, min(dim_tile(dim), 32), 4, 1 if is_hip else 2)
    is_whole = width == 1 and dim_tile(dim) <= 128  # the tile of query rows is loaded once
    return Tiles(128, 64, dim_tile(dim) if is_whole else min(dim_tile(dim), 64), 8, 2 if is_hip else 3)
