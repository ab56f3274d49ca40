"""What programs of the attention kernels read: a tile of queries, and rows of the pyramid by their place in a list."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def query_tile(batch, heads, queries, BLOCK_M: tl.constexpr, TILE_M: tl.constexpr, CAUSAL: tl.constexpr):
    """Which tile of which head of which item a program holds. A tile is a query block, part of one, or a padded one.

    Heads come one after another, as their keys and values stay in the cache. What reads most comes first, so that none
    of it is left running at the end: late tiles under a causal mask; else, of all heads, the tiles at both ends of the
    sequence, where text stands.
    """
    tiles = tl.cdiv(queries, BLOCK_M) * max(BLOCK_M // TILE_M, 1)
    program = tl.program_id(0)
    if CAUSAL:
        tile, head = tiles - 1 - program % tiles, program // tiles
    else:
        ends = tl.minimum(tiles, 1024 // TILE_M)
        is_end = program < ends * batch * heads
        place = tl.where(is_end, program, program - ends * batch * heads)
        a_head = tl.where(is_end, ends, tl.maximum(tiles - ends, 1))
        tile, head = place % a_head, place // a_head
        tile += tl.where(is_end, tl.where(tile < ends // 2, 0, tiles - ends), ends // 2)
    b, h = head // heads, head % heads
    # Then their places need no sign, and fewer registers.
    tl.assume(tile >= 0)
    tl.assume(b >= 0)
    tl.assume(h >= 0)
    return tile, b.to(tl.int64), h.to(tl.int64)


@triton.jit
def in_eights(step, DIM: tl.constexpr):
    """`step` between rows of `DIM` numbers, a multiple of 8 as `with_wide_rows` has it, so that the compiler sees it.

    It is told whether one divides by 16, and makes narrow loads of all others. A hint on an argument would be lost.
    """
    if DIM % 16 != 0:
        step = step // 8 * 8
    return step


@triton.jit
def level_start(shift, k, v, k_step, v_step, pooled_k, pooled_v, padded, DIM: tl.constexpr):
    """Where level `2 ** shift` begins: its row in the flat pyramid; pointers to its keys and values, and their steps.

    Level 1 stands in `k` and `v`, the others one after another in `pooled_k` and `pooled_v`.
    """
    row = 2 * padded - (2 * padded >> shift)
    if shift > 0:
        k += _distance(k, pooled_k + (row - padded).to(tl.int64) * DIM)
        v += _distance(v, pooled_v + (row - padded).to(tl.int64) * DIM)
    k_step, v_step = tl.where(shift > 0, DIM, k_step), tl.where(shift > 0, DIM, v_step)
    return row, k, v, in_eights(k_step, DIM), in_eights(v_step, DIM)


@triton.jit
def _distance(a, b):
    """What leads from pointer `a` to `b`: Triton 3.6 cannot choose between two pointers on AMD GPUs.

    Where both are aligned for wide loads so is their distance, which the compiler could not know; where one is not, it
    does not make the sum so.
    """
    size: tl.constexpr = a.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of((b.to(tl.int64) - a.to(tl.int64)) // size, 16 // size)


@triton.jit
def level_list(starts, blocks, log_rows):
    """The list of a level whose blocks have `2 ** log_rows` rows: its first entry, rows of whole blocks, all rows."""
    begin = tl.load(starts)
    whole = tl.load(starts + 1) - begin
    length = tl.load(starts + 2) - begin
    return blocks + begin, whole << log_rows, length << log_rows


@triton.jit
def listed_row(at, listed, log_rows, mask=None):
    """The row of its level that stands at position `at` of the list."""
    return (tl.load(listed + (at >> log_rows), mask=mask) << log_rows) + (at & ((1 << log_rows) - 1))


@triton.jit
def edge_rows(at, listed, length, row_bias, row_last, first_mark, shift, tokens, log_rows):
    """Rows at positions `at` of a level, of which any may be cut: place in the level, log2 of its tokens, the last one.

    The bias is -inf where there is no row. Only the last group of a sequence may be short, unless a key mask cuts more:
    then `row_bias` and `row_last` have numbers for every row, for the first of this level at `first_mark`.
    """
    is_row = at < length
    row = listed_row(at, listed, log_rows, is_row)
    if row_bias is not None:
        bias = tl.load(row_bias + first_mark + row, mask=is_row, other=float("-inf"))
        last = tl.load(row_last + first_mark + row, mask=is_row, other=0)
    else:
        whole = tokens >> shift
        rest = tl.log2((tokens - (whole << shift)).to(tl.float32))  # -inf if there is none
        bias = tl.where(row < whole, shift * 1.0, tl.where(row == whole, rest, float("-inf")))
        bias = tl.where(is_row, bias, float("-inf"))
        last = tl.minimum((row + 1) << shift, tokens) - 1
    return row, bias, last


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
