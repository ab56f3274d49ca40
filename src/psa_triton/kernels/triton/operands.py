"""What all attention kernels read, and how the two that walk the lists of query blocks are launched."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch, dim_tile, dot_precision
from psa_triton.kernels.reading import Reading
from psa_triton.kernels.triton.quantize import quantize
from psa_triton.kernels.triton.schedule import BlockLists
from psa_triton.kernels.triton.tiles import Tiles
from psa_triton.pyramid.pooling_triton import kept_rows, pool

_INT8_DIM: Final = 32
"""Fewest numbers of a row that matrix units multiply in 8 bits."""


class Operands(NamedTuple):
    """An attention's inputs, pooled: what kernels take as one argument."""

    q: Tensor
    """`[B, Hq, Nq, D]`, any strides."""
    k: Tensor
    v: Tensor
    """`[B, Hkv, Nk, D]`; the dimensions of a row stand side by side."""
    pooled_k: Tensor
    pooled_v: Tensor
    """Their levels from 2 on, as `pool` makes them; k and v, which no kernel reads as such, if there are none."""
    key_step: Tensor | None
    """Where keys are in int8: what a step of each row is, float32, level 1 first; else None."""
    spread: Tensor | None
    """Of the rows of `pooled_k`, by which their logits are corrected; None for none."""
    row_bias: Tensor | None
    """`KeptRows.bias`, as `last` is below; None if there is no key mask."""
    row_last: Tensor | None


def pooled_operands(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, reading: Reading) -> Operands:
    """The operands of q, k and v, with all levels up to `reading.coarsest`."""
    n, coarsest = blocks.n, reading.coarsest
    k, v = (with_wide_rows(x if x.stride(3) == 1 else x.contiguous()) for x in (k, v))
    keep, bias, last = (None, None, None) if blocks.key_mask is None else kept_rows(blocks.key_mask, n, coarsest)
    pooled_k, spread, pooled_v = k, None, v
    if coarsest > 1:
        pooled_k, spread = pool(k, n, coarsest, keep, with_spread=reading.pool_correction != "none")
        pooled_v, _ = pool(v, n, coarsest, keep)
    key_step = None
    if reading.qk_dtype == "int8":
        k, pooled_k, key_step = quantize(k, pooled_k if coarsest > 1 else None, blocks.columns * n)
    return Operands(q, k, v, pooled_k, pooled_v, key_step, spread, bias, last)


def with_wide_rows(x: Tensor) -> Tensor:
    """`x [B, H, N, D]`, or a copy if it is one of those for which `rows.in_eights` would not be true."""
    gaps = [stride for stride, size in zip(x.stride()[:3], x.shape[:3], strict=True) if size > 1]
    is_even = x.stride(3) == 1 and all(gap % 8 == 0 for gap in gaps)
    return x if x.shape[3] % 16 == 0 or is_even else x.contiguous()


def walk(
    kernel: Any,
    operands: Operands,
    lists: BlockLists,
    blocks: Blocks,
    tiles: Tiles,
    arguments: dict[str, Any],
    constants: dict[str, Any],
) -> None:
    """Launch a kernel whose programs hold a tile of queries each, and walk what its query block reads.

    Args:
        kernel: the kernel.
        operands: what it reads.
        lists: of the levels `[B, Hq, nq, nk]`.
        blocks: which they are.
        tiles: how it cuts its work.
        arguments: its own, beside those that all such kernels have.
        constants: likewise.
    """
    batch, heads, queries, dim = operands.q.shape
    shared = dict(
        operands=operands,
        lists=(lists.blocks, lists.starts),
        sizes=(batch, heads, heads // operands.k.shape[1], queries, blocks.keys, blocks.columns),
    )
    sizes = dict(
        DIM=dim,
        DIM_TILE=dim_tile(dim) if operands.key_step is None else max(dim_tile(dim), _INT8_DIM),
        BLOCK_M=blocks.m,
        LOG_BLOCK_N=blocks.n.bit_length() - 1,
        TILE_M=tiles.m,
        TILE_N=tiles.n,
        EDGE_N=tiles.edge,
        SHIFTS=lists.shifts,
        CAUSAL=blocks.is_causal,
        PRECISION=dot_precision(operands.q.dtype),
    )
    grid = (blocks.rows * max(blocks.m // tiles.m, 1) * batch * heads,)
    Launch(kernel, grid, shared | arguments, sizes | constants, tiles.warps, tiles.stages).run()
