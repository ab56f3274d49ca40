"""What programs of the attention kernels read: a tile of queries, and rows of the pyramid by their place in a list."""

from __future__ import annotations

import triton
import triton.language as tl


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
def block_of(token, BLOCK_N: tl.constexpr):
    """`token // BLOCK_N` by a shift: a division of signed integers would mind the sign."""
    return (token.to(tl.uint32) // BLOCK_N).to(tl.int32)


@triton.jit
def edge_rows(at, starts, blocks, keep, tokens, BLOCK_N: tl.constexpr):
    """Tokens at positions `at` of the rows at level 1, and whether there is a row: what a mask, if any, keeps."""
    is_row = at < tl.load(starts + 2) * BLOCK_N
    token = tl.load(blocks + block_of(at, BLOCK_N), mask=is_row, other=0) * BLOCK_N + (at & (BLOCK_N - 1))
    is_row = is_row & (token < tokens)
    if keep is not None:
        is_row = is_row & (tl.load(keep + token, mask=is_row, other=0) != 0)
    return token, is_row


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
    segment = tl.load(starts + 2)
    offset = segment * BLOCK_N + tl.zeros_like(at)
    bound = 0
    for s in tl.static_range(2, SHIFTS):
        next_segment = tl.load(starts + s + 1)
        bound += (next_segment - segment) * (BLOCK_N >> (s - 1))
        segment = next_segment
        reached = at >= bound
        shift = tl.where(reached, s, shift)
        offset = tl.where(reached, segment * BLOCK_N - (bound << s), offset)
    place = (at << shift) + offset  # the token, if the list's blocks stood side by side
    is_row = at < length
    block = tl.load(blocks + block_of(place, BLOCK_N), mask=is_row, other=0)
    return shift, block * BLOCK_N + (place & (BLOCK_N - 1)), is_row


@triton.jit
def pooled_bias(shift, token, is_row, tokens, SHIFTS: tl.constexpr):
    """log2 of the tokens in groups of `2 ** shift` that begin at `token`, -inf where there is no row.

    Only the last group of a level may be short, so one logarithm a level will do.
    """
    short = tl.zeros(token.shape, tl.float32)
    for s in tl.static_range(1, SHIFTS):
        rest = tl.maximum(tokens & ((1 << s) - 1), 1)
        short = tl.where(shift == s, tl.log2(rest.to(tl.float32)), short)
    bias = tl.where(token + (1 << shift) <= tokens, shift.to(tl.float32), short)
    return tl.where(is_row & (token < tokens), bias, float("-inf"))


@triton.jit
def load_whole(row, d, DIM: tl.constexpr, DIM_TILE: tl.constexpr):
    """Rows that all exist, at pointers `row` `[R, 1]`, whose dimensions lie at `d` `[1, DIM_TILE]` behind them."""
    if DIM == DIM_TILE:
        return tl.load(row + d)
    return tl.load(row + d, mask=tl.arange(0, DIM_TILE)[None, :] < DIM, other=0.0)


@triton.jit
def computed_once(row):
    """`row`, computed in one place and handed to where it is needed.

    The compiler would rather compute it again at each use, every thread for all of its columns, in registers that are
    not there. It does not look behind a sum.
    """
    return tl.sum(tl.join(row, tl.zeros_like(row)), axis=1)


@triton.jit
def squared_norm(tile):
    """`|x| ** 2` of the rows of a tile, summed in float32."""
    wide = tile.to(tl.float32)
    return tl.sum(wide * wide, axis=1)


@triton.jit
def load_lse(lse, query, is_query):
    """Log-sum-exps in base 2, `inf` for a query that saw nothing: its weights `exp2(logit - lse)` are zeros."""
    natural = tl.load(lse + query, mask=is_query, other=float("-inf"))
    return tl.where(natural == float("-inf"), float("inf"), natural * 1.4426950408889634)
