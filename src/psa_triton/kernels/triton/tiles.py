"""Hardware choices of the attention kernels: rows of a tile, warps, loads in flight. They do not change results."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from psa_triton.dots import Backend

SMALLEST_TILE = 16
"""Matrix units take at least this many rows."""


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
    """Tiles whose loads are in flight."""


def query_tile(block_m: int) -> int:
    """Query rows that one program holds: a query block, part of a large one, or a small one filled up."""
    return min(max(block_m, SMALLEST_TILE), 128)


def dim_tile(dim: int) -> int:
    """Head dimension as matrix units take it: the next power of two."""
    return max(triton.next_power_of_2(dim), SMALLEST_TILE)


def forward_tiles(dim: int, dtype: torch.dtype, block_m: int, backend: Backend) -> Tiles:
    """Tiles of the forward kernel; chosen so that nothing spills, see docs/kernels.md."""
    m, width = query_tile(block_m), dim_tile(dim)
    if dtype == torch.float32:
        return Tiles(min(m, 64), 32, 8 if width > 64 else 4, 1 if backend == "hip" else 2)
    if width > 128:
        return Tiles(min(m, 64), 32, 8, 1 if backend == "hip" else 2)
    return Tiles(m, 64, 8 if m * width > 64 * 64 else 4, 1 if backend == "hip" else 3)


def backward_q_tiles(dim: int, dtype: torch.dtype, block_m: int, backend: Backend) -> Tiles:
    """Tiles of the kernel for the gradient of queries."""
    m, width = query_tile(block_m), dim_tile(dim)
    if dtype == torch.float32:
        return Tiles(min(m, 64), 32, 8 if width > 64 else 4, 1 if backend == "hip" else 2)
    if width > 128:
        return Tiles(min(m, 64), 32, 8, 1 if backend == "hip" else 2)
    return Tiles(m, 64, 8 if m * width > 64 * 64 else 4, 1 if backend == "hip" else 2)


def backward_kv_tiles(dim: int, dtype: torch.dtype, block_m: int, block_rows: int, backend: Backend) -> Tiles:
    """Tiles of the kernel for the gradient of keys and values; `block_rows` is what a key block has at the level."""
    n, width = max(block_rows, SMALLEST_TILE), dim_tile(dim)
    m = min(query_tile(block_m), 64)
    if dtype == torch.float32:
        return Tiles(min(m, 32), min(n, 32), 4, 1 if backend == "hip" else 2)
    if width > 128:
        return Tiles(min(m, 32), min(n, 64), 8, 1 if backend == "hip" else 2)
    n = min(n, 128)
    return Tiles(m, n, 8 if n == 128 else 4, 1 if backend == "hip" else 2)
