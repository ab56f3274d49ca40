"""What all attention kernels read, and how the two that walk the lists of query blocks are launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch, dim_tile, dot_precision
from psa_triton.kernels.reading import Reading
from psa_triton.kernels.triton.schedule import BlockLists
from psa_triton.kernels.triton.tiles import Tiles
from psa_triton.pyramid.pooling_triton import KeptRows, kept_rows, pool


@dataclass(frozen=True)
class Operands:
    """An attention's inputs, pooled."""

    q: Tensor
    """`[B, Hq, Nq, D]`, any strides, as are k and v."""
    k: Tensor
    v: Tensor
    """`[B, Hkv, Nk, D]`."""
    pooled_k: Tensor
    pooled_v: Tensor
    """Their levels from 2 on, as `pool` makes them; k and v, which no kernel reads as such, if there are none."""
    spread: Tensor | None
    """Of the rows of `pooled_k`, by which their logits are corrected; None for none."""
    kept: KeptRows | None
    """What a key mask leaves of tokens and rows; None if it leaves all."""
    blocks: Blocks
    scale: float
    """Factor of the logits."""

    @property
    def group(self) -> int:
        """Query heads that read one key head."""
        return self.q.shape[1] // self.k.shape[1]


def pooled_operands(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, reading: Reading) -> Operands:
    """The operands of q, k and v, with all levels up to `reading.coarsest`."""
    n, coarsest = blocks.n, reading.coarsest
    kept = None if blocks.key_mask is None else kept_rows(blocks.key_mask, n, coarsest)
    pooled_k, spread, pooled_v = k, None, v
    if coarsest > 1:
        keep = None if kept is None else kept.keep
        pooled_k, spread = pool(k, n, coarsest, keep, with_spread=reading.pool_correction != "none")
        pooled_v, _ = pool(v, n, coarsest, keep)
    return Operands(q, k, v, pooled_k, pooled_v, spread, kept, blocks, reading.scale)


def walk(
    kernel: Any, operands: Operands, lists: BlockLists, tiles: Tiles, arguments: dict[str, Any], **constants: Any
) -> None:
    """Launch a kernel whose programs hold a tile of queries each, and walk what its query block reads.

    Args:
        kernel: the kernel.
        operands: what it reads.
        lists: of the levels `[B, Hq, nq, nk]`.
        tiles: how it cuts its work.
        arguments: its own, beside those that all such kernels have.
        constants: likewise.
    """
    o, kept = operands, operands.kept
    batch, heads, queries, dim = o.q.shape
    shared = dict(
        q=o.q,
        k=o.k,
        v=o.v,
        pooled_k=o.pooled_k,
        pooled_v=o.pooled_v,
        spread=o.spread,
        keep=kept and kept.keep,
        row_bias=kept and kept.bias,
        row_last=kept and kept.last,
        blocks=lists.blocks,
        starts=lists.starts,
        heads=heads,
        group=o.group,
        queries=queries,
        tokens=o.blocks.keys,
        columns=o.blocks.columns,
        q_strides=o.q.stride(),
        k_strides=o.k.stride(),
        v_strides=o.v.stride(),
    )
    sizes = dict(
        DIM=dim,
        DIM_TILE=dim_tile(dim),
        BLOCK_M=o.blocks.m,
        BLOCK_N=o.blocks.n,
        TILE_M=tiles.m,
        TILE_N=tiles.n,
        SHIFTS=lists.shifts,
        CAUSAL=o.blocks.is_causal,
        PRECISION=dot_precision(o.q.dtype),
    )
    grid = (o.blocks.rows * max(o.blocks.m // tiles.m, 1), batch * heads)
    Launch(kernel, grid, shared | arguments, sizes | constants, warps=tiles.warps, stages=tiles.stages).run()
