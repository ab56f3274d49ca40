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

_FIELD = tl.constexpr(16)
"""Bits that count blocks of a segment, side by side with those of three others."""
_LARGEST = tl.constexpr((1 << 16) - 1)
_FIRST_FOUR = tl.constexpr(0x0001_0001_0001_0001)
"""1 in each of four fields."""
_SPREADS_FIRST = tl.constexpr(triton.__version__.startswith("3.6."))
"""Of a tile without neighbours in memory, Triton 3.6 gives neighbouring threads the first dimension, not the last."""


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

    Raises:
        ValueError: more than 65,535 columns, which a count here could not hold.
    """
    batch, heads, rows, columns = levels.shape
    if columns > _LARGEST.value:
        raise ValueError(
            f"levels: GPU kernels expect lists of at most {_LARGEST.value} blocks, got {columns}; use larger blocks, "
            f"or impl='torch'"
        )
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
    level = _turn(tl.load(levels + _turn(j).to(tl.int64) * level_stride, mask=_turn(j) < columns, other=0))
    level = level.to(tl.uint8).to(tl.int32)  # what is below 0 is no level, nor is it above 127
    if CAUSAL:
        level = tl.where(j * BLOCK_N <= last_limit, level, 0)
    whole = (j + 1) * BLOCK_N <= tokens
    if kept is not None:
        of_item = kept + head // heads * columns
        count = _turn(tl.load(of_item + _turn(j) * kept_stride, mask=_turn(j) < columns, other=0))
        level *= tl.minimum(count, 1)  # not `tl.where`, with which Triton 3.9 spills
        whole = count == BLOCK_N
    if CAUSAL:
        whole = whole & ((j + 1) * BLOCK_N - 1 <= first_limit)

    # Two levels at a time. Counts of their four segments stand side by side in a number, so that one scan counts all.
    position = tl.zeros((), tl.int64)
    for pair in tl.static_range((SHIFTS + 1) // 2):
        is_finer = level == 1 << (2 * pair)
        is_coarser = (level == 2 << (2 * pair)) & (2 * pair + 1 < SHIFTS)
        segment = tl.where(is_coarser, 2, 0)
        segment += tl.where(whole, 0, 1) if SPLIT else 1
        listed = is_finer | is_coarser
        one = listed.to(tl.int64) << (segment * _FIELD)
        of_thread = tl.sum(one, axis=0)
        counts = tl.sum(of_thread, axis=0)
        begins = position * _FIRST_FOUR + counts * (_FIRST_FOUR - 1)  # to each, the counts of those before it
        for k in tl.static_range(min(4, 2 * SHIFTS - 4 * pair)):
            tl.store(starts + 4 * pair + k, (begins >> (k * _FIELD)) & _LARGEST)
        before = begins + tl.cumsum(of_thread, axis=0) - of_thread
        place = before[None, :] + tl.cumsum(one, axis=0) - one
        place = (place >> (segment * _FIELD)) & _LARGEST
        tl.store(blocks + _turn(place), _turn(j), mask=_turn(listed))
        position = ((begins >> (3 * _FIELD)) & _LARGEST) + ((counts >> (3 * _FIELD)) & _LARGEST)
    tl.store(starts + 2 * SHIFTS, position)


@triton.jit
def _turn(x):
    """As a tile has to be where it is read or written, for a thread to hold the blocks of a column; or back."""
    return tl.trans(x) if _SPREADS_FIRST else x
