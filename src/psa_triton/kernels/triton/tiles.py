"""Hardware choices of the attention kernels: rows of a tile, warps, loads in flight. They do not change results."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psa_triton.gpu import SMALLEST_TILE, current_backend, dim_tile


@dataclass(frozen=True)
class Tiles:
    """How one kernel cuts its work."""

    m: int
    """Query rows of a tile."""
    n: int
    """Key rows of a tile."""
    warps: int
    """Warps that share a tile."""
    stages: int
    """Stages of the loops' pipeline: two load a block number and find the rows, the others have rows in flight."""

    @property
    def edge(self) -> int:
        """Key rows of a tile that masks may cut: few of these are read, and a smaller one takes fewer registers."""
        return min(self.n, 64)


def query_tile(block_m: int) -> int:
    """Query rows that one program holds: a query block, part of a large one, or a small one filled up."""
    return min(max(block_m, SMALLEST_TILE), 128)


def forward_tiles(dim: int, dtype: torch.dtype, block_m: int) -> Tiles:
    """Tiles of the forward kernel; chosen so that nothing spills, see docs/kernels.md."""
    m, width = query_tile(block_m), dim_tile(dim)
    stages = 1 if current_backend() == "hip" else 2
    if dtype == torch.float32 and width > 128:
        return Tiles(min(m, 16), 16, 8, 1)
    if dtype == torch.float32:
        return Tiles(min(m, 32), 16, 8, stages) if width > 64 else Tiles(min(m, 64), 32, 4, stages)
    if width > 128:
        return Tiles(min(m, 64), 32, 8, stages)
    if current_backend() == "hip":
        return Tiles(m, 32 if width > 64 else 64, 8 if m > 64 else 4, stages)
    return Tiles(m, 64, 8 if m * width > 64 * 64 else 4, 5)


def backward_q_tiles(dim: int, dtype: torch.dtype, block_m: int) -> Tiles:
    """Tiles of the kernel for the gradient of queries."""
    m, width = query_tile(block_m), dim_tile(dim)
    if dtype == torch.float32:
        size = 16 if width > 128 else 32
        return Tiles(min(m, size), size, 8 if width > 64 else 4, _backward_stages(dtype))
    if width > 128:
        return Tiles(min(m, 32), 32, 8, _backward_stages(dtype))
    return Tiles(m, 32, 8 if m * width > 128 * 64 else 4, _backward_stages(dtype))


def backward_kv_tiles(dim: int, dtype: torch.dtype, block_m: int, block_rows: int) -> Tiles:
    """Tiles of the kernel for the gradient of keys and values; `block_rows` is what a key block has at the level."""
    m, n, width = query_tile(block_m), max(block_rows, SMALLEST_TILE), dim_tile(dim)
    if dtype == torch.float32:
        m, n = min(m, 16 if width > 128 else 32), min(n, 16 if width > 64 else 32)
        return Tiles(m, n, 8 if width > 64 else 4, _backward_stages(dtype))
    n = min(n, 128 * 64 // max(width, 64))
    return Tiles(min(m, 32 if width > 64 else 64), n, 8 if n > 64 else 4, _backward_stages(dtype))


def _backward_stages(dtype: torch.dtype) -> int:
    """Where a tile lies is read from a list first: of five stages that takes half, and two tiles are in flight."""
    if current_backend() == "hip":
        return 1
    return 2 if dtype == torch.float32 else 5
