"""Hardware choices of the scoring kernels: rows of a tile, warps, loads in flight. They do not change what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton

Backend = Literal["cuda", "hip"]


@dataclass(frozen=True)
class Tiles:
    """How the scoring kernels cut their work."""

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


def current_backend() -> Backend:
    """What this build of torch runs kernels on."""
    return "hip" if torch.version.hip else "cuda"


def dim_tile(dim: int) -> int:
    """Head dimension as matrix units take it: the next power of two, at least 16."""
    return max(triton.next_power_of_2(dim), 16)


def dot_precision(dtype: torch.dtype, backend: Backend) -> str:
    """How float32 products are formed: three TF32 products keep float32's precision at tensor-core speed."""
    return "tf32x3" if dtype == torch.float32 and backend == "cuda" else "ieee"


def scoring_tiles(dim: int, dtype: torch.dtype, backend: Backend) -> Tiles:
    """Tiles of the scoring kernel; chosen so that nothing spills."""
    if dtype == torch.float32:
        return Tiles(64, 64, min(dim_tile(dim), 32), 4, 1 if backend == "hip" else 2)
    return Tiles(128, 128, min(dim_tile(dim), 128), 8, 2 if backend == "hip" else 3)
