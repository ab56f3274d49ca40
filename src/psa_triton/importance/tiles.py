"""Hardware choices of the scoring kernel: rows of a tile, warps, loads in flight. They do not change results."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psa_triton.dots import current_backend, dim_tile


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


def scoring_tiles(dim: int, width: int, dtype: torch.dtype) -> Tiles:
    """Tiles of the scoring kernel for rows of `width` tokens, on what this build of torch runs on.

    Chosen so that nothing spills. Where a row is one short token, query rows are loaded once and several programs fit
    on a multiprocessor: one multiplies while another reduces. Longer rows are loaded again for every tile of key rows,
    which is larger so that they are loaded less often.
    """
    channels = dim_tile(dim)
    is_hip = current_backend() == "hip"
    if dtype == torch.float32:
        return Tiles(64, 64, min(channels, 32), 4, 1 if is_hip else 2)
    if width == 1 and channels <= 128:
        return Tiles(128, 64, channels, 8, 2 if is_hip else 3)
    return Tiles(128, 128, min(channels, 64), 8, 2 if is_hip else 3)
