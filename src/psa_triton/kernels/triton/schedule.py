"""Levels -> for every row of blocks, the list of what it reads, made on the device at a size that is known beforehand.

A row's list holds block numbers, grouped in two *segments* a level, ascending within each:

* segment `2 * s`: blocks at level `2 ** s` that are whole: cut neither by a mask nor by the end of the sequence;
* segment `2 * s + 1`: the other blocks at that level.

`starts` tells where each segment begins, so a kernel finds the row of the pyramid behind any position by shifts alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch, tile_of_head, warp_size, warps_of_row


@dataclass(frozen=True)
class BlockLists:
    """What each row of a level mask reads."""

    blocks: Tensor
    """int32 `[B, H, rows, columns]`: block numbers by segment; what lies behind a row's last segment is undefined."""
    starts: Tensor
    """int32 `[B, H, rows, 2 * shifts + 1]`: first position of every segment, and the list's length."""
    shifts: int
    """Number of levels, `1 + log2(coarsest)`."""


def list_blocks(levels: Tensor, shifts: int, split: Blocks | None) -> BlockLists:
    """The lists of every row of `levels`.

    Args:
        levels: int8 `[B, H, rows, columns]`, any strides; what is no level up to `2 ** (shifts - 1)` is not listed.
        shifts: number of levels, `1 + log2(coarsest)`.
        split: to tell whole blocks from others and to leave out what masks hide wholly; None lists all that has a
            level, as not whole.
    """
    batch, heads, rows, columns = levels.shape
    blocks = torch.empty(levels.shape, dtype=torch.int32, device=levels.device)
    starts = torch.empty(batch, heads, rows, 2 * shifts + 1, dtype=torch.int32, device=levels.device)
    of = split or Blocks(1, 1, 0, 0)
    kept = of.kept()
    width = max(triton.next_power_of_2(columns), warp_size())
    warps = warps_of_row(width)
    Launch(
        _list_blocks_kernel,
        (rows * batch * heads,),
        dict(
            levels=levels,
            blocks=blocks,
            starts=starts,
            kept=None if kept is None else kept.int(),
            heads=heads,
            rows=rows,
            columns=columns,
            queries=of.queries,
            tokens=of.keys,
            level_strides=levels.stride()[:3],
            # Not known to be 1, with which neighbours would be loaded by different threads, and counted across all.
            level_stride=levels.stride(3),
            kept_stride=1,
        ),
        dict(
            BLOCK_M=of.m,
            BLOCK_N=of.n,
            SHIFTS=shifts,
            SPLIT=split is not None,
            CAUSAL=of.is_causal,
            WIDTH=width,
            THREADS=warp_size() * warps,
        ),
        warps=warps,
    ).run()
    return BlockLists(blocks, starts, shifts)


@triton.jit(do_not_specialize=["level_stride", "kept_stride"])
def _list_blocks_kernel(
    levels,
    blocks,
    starts,
    kept,
    heads,
    rows,
    columns,
    queries,
    tokens,
    level_strides,
    level_stride,
    kept_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SHIFTS: tl.constexpr,
    SPLIT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDTH: tl.constexpr,
    THREADS: tl.constexpr,
):
    i, head = tile_of_head(rows)
    row = head * rows + i
    levels += (head // heads) * level_strides[0] + (head % heads) * level_strides[1] + i.to(tl.int64) * level_strides[2]
    blocks += row * columns
    starts += row * (2 * SHIFTS + 1)

    # One thread holds the blocks of a column.
    OF_THREAD: tl.constexpr = WIDTH // THREADS
    j = tl.arange(0, OF_THREAD)[:, None] + tl.arange(0, THREADS)[None, :] * OF_THREAD
    first_limit = i * BLOCK_M + tokens - queries
    last_limit = tl.minimum((i + 1) * BLOCK_M, queries) - 1 + tokens - queries
    level = tl.load(levels + j.to(tl.int64) * level_stride, mask=j < columns, other=0)
    level = level.to(tl.uint8).to(tl.int32)  # what is below 0 is no level, nor is it above 127
    if CAUSAL:
        level = tl.where(j * BLOCK_N <= last_limit, level, 0)
    whole = (j + 1) * BLOCK_N <= tokens
    if kept is not None:
        count = tl.load(kept + head // heads * columns + j * kept_stride, mask=j < columns, other=0)
        level *= tl.minimum(count, 1)  # not `tl.where`, with which Triton 3.9 spills
        whole = count == BLOCK_N
    if CAUSAL:
        whole = whole & ((j + 1) * BLOCK_N - 1 <= first_limit)
    kind = 2 * level + tl.where(whole, 0, 1) if SPLIT else 2 * level + 1

    position = 0
    for segment in range(2 * SHIFTS):  # not unrolled, which would keep addresses of every segment on the stack
        tl.store(starts + segment, position)
        wanted = (2 << (segment // 2)) + segment % 2
        listed = kind == wanted
        one = tl.maximum(1 - (kind ^ wanted), 0)  # not `listed`: LLVM would pack its bits, to sum them, and unpack them
        of_thread = tl.sum(one, axis=0)
        length = tl.sum(of_thread, axis=0)
        if length > 0:  # most segments of a row are empty
            before = position + tl.cumsum(of_thread, axis=0) - of_thread
            place = before[None, :] + tl.cumsum(one, axis=0) - one
            tl.store(blocks + place, j, mask=listed)
            position += length
    tl.store(starts + 2 * SHIFTS, position)
