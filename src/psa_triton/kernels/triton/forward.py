"""The forward kernel: one program holds a tile of queries and walks the list of what its query block reads.

Level by level: first the tiles that whole blocks fill, without a mask: the inner loop of dense attention, as all groups
of a level count as many tokens. Then the edges: blocks that make no full tile, or that a mask or the end of the
sequence cuts.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import dot
from psa_triton.kernels.triton.operands import Operands, walk
from psa_triton.kernels.triton.quantize import to_int8
from psa_triton.kernels.triton.rows import (
    computed_once,
    edge_rows,
    in_eights,
    level_list,
    level_start,
    listed_row,
    load_whole,
    query_tile,
    squared_norm,
)
from psa_triton.kernels.triton.schedule import BlockLists
from psa_triton.kernels.triton.tiles import choose_tiles, own_tiles


def attend(operands: Operands, lists: BlockLists, blocks: Blocks, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over the lists.

    Returns:
        The output, shape, dtype and strides of q, and the log-sum-exp, float32 `[B, Hq, Nq]`.
    """
    q = operands.q
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if suits_tma(operands, lists.shifts, blocks, scale) and (tiles := own_tiles("attend_tma", "sm_90", q, blocks.n)):
        from psa_triton.kernels.triton.forward_tma import attend_tma  # of Triton's experimental parts

        attend_tma(operands, lists, blocks, scale, tiles, out, lse)
        return out, lse
    strides = (q.stride(), operands.k.stride(), operands.v.stride(), out.stride())
    arguments = dict(out=out, lse=lse, scale=abs(scale) * math.log2(math.e), strides=strides)
    kernel = "attend" if operands.key_step is None else "attend_int8"
    tiles = choose_tiles(kernel, q, blocks.m, blocks.n, blocks.is_causal, operands.spread is not None)
    walk(_attend_kernel, operands, lists, blocks, tiles, arguments, dict(NEGATIVE=scale < 0))
    return out, lse


def suits_tma(operands: Operands, shifts: int, blocks: Blocks, scale: float) -> bool:
    """Whether the kernel of `forward_tma` can do this, where a table asks for it; all else is left to the one here."""
    k, v = operands.k, operands.v
    is_plain = operands.key_step is None and operands.spread is None and scale >= 0
    is_seen = not blocks.is_causal and blocks.key_mask is None
    # Boxes begin at multiples of 16 bytes, and have a multiple of 8 rows and no more than a tile.
    is_aligned = all(x.data_ptr() % 16 == 0 and all(s > 0 and s % 8 == 0 for s in x.stride()[:3]) for x in (k, v))
    is_cut_so = blocks.m == 128 and blocks.n <= 128 and blocks.n >> shifts - 1 >= 8 and shifts <= 4
    is_shaped = k.dtype.itemsize == 2 and k.shape[3] in (64, 128) and is_cut_so
    return is_plain and is_seen and is_aligned and is_shaped


@triton.jit
def _attend_kernel(
    operands,
    lists,
    out,
    lse,
    scale,
    sizes,
    strides,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LOG_BLOCK_N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    EDGE_N: tl.constexpr,
    SHIFTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    q, k, v, pooled_k, pooled_v, key_step, spread, row_bias, row_last = operands
    blocks, starts = lists
    batch, heads, group, queries, tokens, columns = sizes
    q_strides, k_strides, v_strides, o_strides = strides
    tile, b, h = query_tile(batch, heads, queries, BLOCK_M, TILE_M, CAUSAL)
    first_query = tile * min(BLOCK_M, TILE_M)
    key_head = h // group
    key_heads = heads // group
    row_of_blocks = (b * heads + h) * tl.cdiv(queries, BLOCK_M) + first_query // BLOCK_M
    blocks += row_of_blocks * columns
    starts += row_of_blocks * (2 * SHIFTS + 1)

    d = tl.arange(0, DIM_TILE)
    is_dim = d[None, :] < DIM
    m = tl.arange(0, TILE_M)
    is_query = m < tl.minimum(queries - first_query, BLOCK_M)
    q += b * q_strides[0] + h * q_strides[1] + first_query.to(tl.int64) * q_strides[2]
    k += in_eights(b * k_strides[0] + key_head * k_strides[1], DIM)
    v += in_eights(b * v_strides[0] + key_head * v_strides[1], DIM)
    padded = tl.cdiv(tokens, 1 << LOG_BLOCK_N) << LOG_BLOCK_N
    all_rows = 2 * padded - (2 * padded >> SHIFTS)
    pooled = (b * key_heads + key_head) * (all_rows - padded)
    pooled_k += pooled * DIM
    pooled_v += pooled * DIM
    if spread is not None:
        spread += pooled - padded
    if key_step is not None:
        key_step += (b * key_heads + key_head) * all_rows

    q_tile = tl.load(
        q + m[:, None].to(tl.int64) * q_strides[2] + d[None, :] * q_strides[3],
        mask=is_query[:, None] & is_dim,
        other=0.0,
    )
    if NEGATIVE:
        q_tile = -q_tile
    q_scale = tl.full((TILE_M,), scale, tl.float32)
    if key_step is not None:
        q_tile, q_step = to_int8(q_tile)
        q_scale *= q_step
    if spread is not None:
        half_norm = squared_norm(q_tile) * (q_scale * q_scale * 0.34657359027997264)  # ln 2 / 2: `scale` is base 2's
    # Finite, so that a row that has seen nothing yet meets no inf - inf.
    top = tl.full((TILE_M,), -3.0e38, tl.float32)
    mass = tl.zeros((TILE_M,), tl.float32)
    total = tl.zeros((TILE_M, DIM_TILE), tl.float32)
    nothing = tl.zeros((TILE_M, TILE_N), tl.float32)
    limit = first_query + m + (tokens - queries)
    no_edge = tl.zeros((TILE_M, EDGE_N), tl.float32)
    one = tl.full((TILE_M,), 1.0, tl.float32)

    n = tl.arange(0, TILE_N)
    for shift in range(SHIFTS):
        first_row, level_k, level_v, k_step, v_step = level_start(
            shift, k, v, k_strides[2], v_strides[2], pooled_k, pooled_v, padded, DIM
        )
        log_rows = LOG_BLOCK_N - shift
        first_mark = b * all_rows + first_row
        listed, whole, length = level_list(starts, blocks, log_rows)
        starts += 2

        # Which entry of the list a row of a tile belongs to, and where in its block it lies, is the same in every tile.
        listed_n, within = listed + (n >> log_rows), n & ((1 << log_rows) - 1)
        for t in range(whole // TILE_N):
            row = listed_row(t * TILE_N, listed_n, log_rows) + within
            place = row[:, None].to(tl.int64)
            keys = load_whole(level_k + place * k_step, d[None, :], DIM, DIM_TILE)
            values = load_whole(level_v + place * v_step, d[None, :], DIM, DIM_TILE)
            if key_step is None:
                products = dot(q_tile, tl.trans(keys), nothing, PRECISION)
            else:
                products = _int8_products(q_tile, keys, tl.load(key_step + first_row + row))
            factor = q_scale
            if spread is not None:
                spread_row = tl.load(spread + first_row + row, mask=(row >= 0) & (shift > 0), other=0.0)
                products = products * q_scale[:, None] + half_norm[:, None] * computed_once(spread_row)[None, :]
                factor = one
            top, mass, total = _accumulate(top, mass, total, products, factor, shift * 1.0, values, PRECISION)

        # Few rows: small tiles, and one in flight, save the registers that the long loop needs.
        for at in tl.range(whole // TILE_N * TILE_N, length, EDGE_N, num_stages=1):
            edge = at + tl.arange(0, EDGE_N)
            row, bias, last = edge_rows(edge, listed, length, row_bias, row_last, first_mark, shift, tokens, log_rows)
            is_row = bias > float("-inf")
            place, mask = row[:, None].to(tl.int64), is_row[:, None] & is_dim
            keys = tl.load(level_k + place * k_step + d[None, :], mask=mask, other=0.0)
            values = tl.load(level_v + place * v_step + d[None, :], mask=mask, other=0.0)
            if CAUSAL:
                # The weight of a value that is hidden is 0, and 0 * nan is nan: what is not finite goes into the logits
                # instead, and so to the queries that see it alone.
                zero = values.to(tl.float32) * 0.0
                values = tl.where(zero == 0.0, values, 0.0)
                bias += tl.sum(zero, axis=1)
            if key_step is None:
                products = dot(q_tile, tl.trans(keys), no_edge, PRECISION)
            else:
                products = _int8_products(q_tile, keys, tl.load(key_step + first_row + row, mask=is_row, other=0.0))
            logits = products * q_scale[:, None] + computed_once(bias)[None, :]
            if spread is not None:
                spread_row = tl.load(spread + first_row + row, mask=is_row & (shift > 0), other=0.0)
                logits += half_norm[:, None] * computed_once(spread_row)[None, :]
            if CAUSAL:
                logits = tl.where(computed_once(last)[None, :] <= limit[:, None], logits, float("-inf"))
            top, mass, total = _accumulate(top, mass, total, logits, one, 0.0, values, PRECISION)

    is_empty = mass == 0.0  # the query saw nothing
    mass = tl.where(is_empty, 1.0, mass)
    total = total / mass[:, None]
    out += b * o_strides[0] + h * o_strides[1] + first_query.to(tl.int64) * o_strides[2]
    is_query = (first_query + m < queries) & (m < BLOCK_M)  # found anew: it need not outlast the loops
    out_tile = out + m[:, None].to(tl.int64) * o_strides[2] + d[None, :] * o_strides[3]
    tl.store(out_tile, total.to(out.dtype.element_ty), mask=is_query[:, None] & is_dim)
    natural = tl.where(is_empty, float("-inf"), (top + tl.log2(mass)) * 0.6931471805599453)
    tl.store(lse + (b * heads + h) * queries + first_query + m, natural, mask=is_query)


@triton.jit
def _accumulate(top, mass, total, products, scale, bias, values, PRECISION: tl.constexpr):
    """Online softmax: add a tile's weights and weighted values to the running sums.

    Base-2 logits are `products * scale + bias`, `scale [TILE_M] >= 0`: the largest product is the largest logit, and
    factor and bias cost nothing where they are taken together with the difference.
    """
    new_top = tl.maximum(top, tl.max(products, axis=1) * scale + bias)
    weights = tl.math.exp2(products * scale[:, None] - (new_top - bias)[:, None])
    fade = tl.math.exp2(top - new_top)
    mass = mass * fade + tl.sum(weights, axis=1)
    total = dot(weights.to(values.dtype), values, total * fade[:, None], PRECISION)
    return new_top, mass, total


@triton.jit
def _int8_products(q_tile, keys, steps):
    """Of queries in int8 and of keys whose rows count in `steps`; exact sums."""
    return tl.dot(q_tile, tl.trans(keys), out_dtype=tl.int32).to(tl.float32) * computed_once(steps)[None, :]
