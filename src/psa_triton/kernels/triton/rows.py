"""What programs of the attention kernels read: a tile of queries, and rows of the pyramid by their place in a list."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from psa_triton.pyramid.triton_kernels import first_row


def strides(name: str, x: Tensor) -> dict[str, int]:
    """The strides of `[B, H, N, D]` as kernel arguments."""
    return {f"stride_{name}{axis}": step for axis, step in zip("bhnd", x.stride(), strict=True)}


@triton.jit
def query_rows(tile, queries, BLOCK_M: tl.constexpr, TILE_M: tl.constexpr):
    """Query block of a tile, its queries, and which of them exist. A tile is a block, part of one, or a padded one."""
    within = tl.arange(0, TILE_M)
    if BLOCK_M < TILE_M:
        query = tile * BLOCK_M + within
        return tile, query, (query < queries) & (within < BLOCK_M)
    query = tile * TILE_M + within
    return tile * TILE_M // BLOCK_M, query, query < queries


@triton.jit
def whole_tiles(starts, BLOCK_N: tl.constexpr, TILE_N: tl.constexpr):
    """Tiles that the whole blocks at level 1 fill; where several blocks make a tile, some blocks may be left over."""
    return tl.load(starts + 1) * BLOCK_N // TILE_N


@triton.jit
def whole_tile(t, blocks, BLOCK_N: tl.constexpr, TILE_N: tl.constexpr):
    """First token of the block, or part of a block, behind each row of tile `t`: int64, `[1, 1]` or `[TILE_N, 1]`.

    The row's token is that plus `tile_rows`, which stays the same from tile to tile.
    """
    if BLOCK_N >= TILE_N:
        per_block: tl.constexpr = BLOCK_N // TILE_N
        first = tl.load(blocks + t // per_block) * BLOCK_N + (t % per_block) * TILE_N
        first = tl.full((1, 1), 0, tl.int64) + first
    else:
        place = t * (TILE_N // BLOCK_N) + tl.arange(0, TILE_N) // BLOCK_N
        first = (tl.load(blocks + place) * BLOCK_N).to(tl.int64)[:, None]
    return first


@triton.jit
def tile_rows(BLOCK_N: tl.constexpr, TILE_N: tl.constexpr):
    """Place of each row of a tile in its block or part of a block: int64 `[TILE_N, 1]`."""
    return (tl.arange(0, TILE_N) % min(BLOCK_N, TILE_N)).to(tl.int64)[:, None]


@triton.jit
def edge_rows(at, starts, blocks, tokens, BLOCK_N: tl.constexpr):
    """Tokens at positions `at` of the rows at level 1, and whether there is a row."""
    is_row = at < tl.load(starts + 2) * BLOCK_N
    token = tl.load(blocks + at // BLOCK_N, mask=is_row, other=0) * BLOCK_N + at % BLOCK_N
    return token, is_row & (token < tokens)


@triton.jit
def count_pooled(starts, BLOCK_N: tl.constexpr, SHIFTS: tl.constexpr):
    """Rows of all levels from 2 on."""
    length = 0
    for s in tl.static_range(1, SHIFTS):
        length += (tl.load(starts + s + 2) - tl.load(starts + s + 1)) * (BLOCK_N >> s)
    return length


@triton.jit
def pooled_rows(at, length, starts, blocks, BLOCK_N: tl.constexpr, SHIFTS: tl.constexpr):
    """What lies at positions `at` of the pooled rows: log2 of the level, first token of the group, whether a row."""
    shift = tl.full(at.shape, 1, tl.int32)
    before = tl.zeros_like(at)
    segment = tl.load(starts + 2)
    entry = segment + tl.zeros_like(at)
    bound = 0
    for s in tl.static_range(2, SHIFTS):
        next_segment = tl.load(starts + s + 1)
        bound += (next_segment - segment) * (BLOCK_N >> (s - 1))
        segment = next_segment
        reached = at >= bound
        shift = tl.where(reached, s, shift)
        before = tl.where(reached, bound, before)
        entry = tl.where(reached, segment, entry)
    token = (at - before) << shift  # as if the segment's blocks were consecutive
    is_row = at < length
    block = tl.load(blocks + entry + token // BLOCK_N, mask=is_row, other=0)
    return shift, block * BLOCK_N + token % BLOCK_N, is_row


@triton.jit
def log_count(shift, count, is_row):
    """log2 of a group's tokens, -inf where there is no row."""
    exact = tl.where(count == (1 << shift), shift.to(tl.float32), tl.log2(tl.maximum(count, 1).to(tl.float32)))
    return tl.where(is_row, exact, float("-inf"))


@triton.jit
def load_whole(row, d, DIM: tl.constexpr, DIM_TILE: tl.constexpr):
    """Rows that all exist, at pointers `row` `[R, 1]`, whose dimensions lie at `d` `[1, DIM_TILE]` behind them."""
    if DIM == DIM_TILE:
        return tl.load(row + d)
    return tl.load(row + d, mask=tl.arange(0, DIM_TILE)[None, :] < DIM, other=0.0)


@triton.jit
def load_lse(lse, query, is_query):
    """Log-sum-exps in base 2, `inf` for a query that saw nothing: its weights `exp2(logit - lse)` are zeros."""
    natural = tl.load(lse + query, mask=is_query, other=float("-inf"))
    return tl.where(natural == float("-inf"), float("inf"), natural * 1.4426950408889634)


@triton.jit
def gathered_rows(starts, BLOCK_N: tl.constexpr, SHIFTS: tl.constexpr):
    """Rows that the segments after the first hold."""
    length = 0
    for s in tl.static_range(SHIFTS):
        length += (tl.load(starts + s + 2) - tl.load(starts + s + 1)) * (BLOCK_N >> s)
    return length


@triton.jit
def locate_rows(at, length, blocks, starts, BLOCK_N: tl.constexpr, SHIFTS: tl.constexpr):
    """What lies at positions `at` of the gathered rows: log2 of the level, first token of the group, whether a row."""
    shift = tl.zeros_like(at)
    before = tl.zeros_like(at)
    segment = tl.load(starts + 1)
    entry = segment + tl.zeros_like(at)
    bound = 0
    for s in tl.static_range(1, SHIFTS):
        next_segment = tl.load(starts + s + 1)
        bound += (next_segment - segment) * (BLOCK_N >> (s - 1))
        segment = next_segment
        reached = at >= bound
        shift = tl.where(reached, s, shift)
        before = tl.where(reached, bound, before)
        entry = tl.where(reached, segment, entry)
    token = (at - before) << shift  # as if the segment's blocks were consecutive
    is_row = at < length
    block = tl.load(blocks + entry + token // BLOCK_N, mask=is_row, other=0)
    return shift, block * BLOCK_N + token % BLOCK_N, is_row


@triton.jit
def load_rows(
    x,
    pooled,
    shift,
    token,
    is_row,
    padded,
    stride_n,
    stride_d,
    d,
    DIM: tl.constexpr,
    SHIFTS: tl.constexpr,
):
    """Rows of the pyramid: level 1 straight from the tokens, coarser ones from the pooled levels."""
    mask = is_row[:, None] & (d[None, :] < DIM)
    row = x + token.to(tl.int64) * stride_n
    step = stride_d
    if SHIFTS > 1:
        pooled_row = first_row(tl.maximum(shift, 1), padded) + (token >> shift)
        is_pooled = shift > 0
        row = tl.where(is_pooled, pooled + pooled_row.to(tl.int64) * DIM, row)
        if stride_d != 1:
            return tl.load(row[:, None] + d[None, :] * tl.where(is_pooled, 1, step)[:, None], mask=mask, other=0.0)
    return tl.load(row[:, None] + d[None, :] * step, mask=mask, other=0.0)
