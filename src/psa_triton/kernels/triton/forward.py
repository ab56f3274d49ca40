"""The forward kernel: one program holds a tile of queries and walks the list of what its query block reads.

First the whole blocks at level 1, tile by tile, without mask or bias: the inner loop of dense attention. Then what is
left at level 1, blocks that the causal frontier or the end of the sequence cuts. Then the groups of all coarser levels,
packed into full tiles.
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
from psa_triton.kernels.triton.rows import (
    computed_once,
    count_pooled,
    edge_rows,
    load_whole,
    pooled_bias,
    pooled_rows,
    query_rows,
    squared_norm,
    tile_rows,
    whole_tile,
    whole_tiles,
)
from psa_triton.kernels.triton.schedule import BlockLists
from psa_triton.kernels.triton.tiles import forward_tiles
from psa_triton.pyramid.pooling_triton import first_row


def attend(operands: Operands, lists: BlockLists, blocks: Blocks, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over the lists.

    Returns:
        The output, shape, dtype and strides of q, and the log-sum-exp, float32 `[B, Hq, Nq]`.
    """
    q = operands.q
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tiles = forward_tiles(q.shape[3], q.dtype, blocks.m)
    strides = (q.stride(), operands.k.stride(), operands.v.stride(), out.stride())
    arguments = dict(out=out, lse=lse, scale=abs(scale) * math.log2(math.e), strides=strides)
    walk(_attend_kernel, operands, lists, blocks, tiles, arguments, dict(NEGATIVE=scale < 0))
    return out, lse


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
    BLOCK_N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    SHIFTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    q, k, v, pooled_k, pooled_v, spread, keep, row_bias, row_last = operands
    blocks, starts = lists
    heads, group, queries, tokens, columns = sizes
    q_strides, k_strides, v_strides, o_strides = strides
    # Late query blocks see most under a causal mask: they start first, so that none is left running at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0) if CAUSAL else tl.program_id(0)
    head = tl.program_id(1)
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    key_head = h // group
    key_heads = heads // group
    i, query, is_query = query_rows(tile, queries, BLOCK_M, TILE_M)
    row = head.to(tl.int64) * tl.cdiv(queries, BLOCK_M) + i
    blocks += row * columns
    starts += row * (SHIFTS + 2)

    d = tl.arange(0, DIM_TILE)
    is_dim = d[None, :] < DIM
    q += b * q_strides[0] + h * q_strides[1]
    k += b * k_strides[0] + key_head * k_strides[1]
    v += b * v_strides[0] + key_head * v_strides[1]
    padded = tl.cdiv(tokens, BLOCK_N) * BLOCK_N
    pooled = (b * key_heads + key_head) * first_row(SHIFTS, padded) if SHIFTS > 1 else 0
    pooled_k += pooled * DIM
    pooled_v += pooled * DIM
    if keep is not None:
        keep += b * tokens
        row_bias += b * first_row(SHIFTS, padded)
        row_last += b * first_row(SHIFTS, padded)

    q_tile = tl.load(
        q + query[:, None].to(tl.int64) * q_strides[2] + d[None, :] * q_strides[3],
        mask=is_query[:, None] & is_dim,
        other=0.0,
    )
    if NEGATIVE:
        q_tile = -q_tile
    if spread is not None:
        half_norm = squared_norm(q_tile) * (scale * scale * 0.34657359027997264)  # ln 2 / 2: `scale` is base 2's
    # Finite, so that a row that has seen nothing yet meets no inf - inf.
    top = tl.full((TILE_M,), -3.0e38, tl.float32)
    mass = tl.zeros((TILE_M,), tl.float32)
    total = tl.zeros((TILE_M, DIM_TILE), tl.float32)
    nothing = tl.zeros((TILE_M, TILE_N), tl.float32)

    n = tile_rows(BLOCK_N, TILE_N)
    k_dim, v_dim = d[None, :] * k_strides[3], d[None, :] * v_strides[3]
    for t in range(0, whole_tiles(starts, BLOCK_N, TILE_N)):
        first = whole_tile(t, blocks, BLOCK_N, TILE_N)
        keys = load_whole(k + first * k_strides[2] + n * k_strides[2], k_dim, DIM, DIM_TILE)
        values = load_whole(v + first * v_strides[2] + n * v_strides[2], v_dim, DIM, DIM_TILE)
        products = dot(q_tile, tl.trans(keys), nothing, PRECISION)
        top, mass, total = _accumulate(top, mass, total, products, scale, values, PRECISION)

    limit = query + tokens - queries
    done = whole_tiles(starts, BLOCK_N, TILE_N) * TILE_N
    if CAUSAL:
        spoiled = _spoiled(
            query, v, v_dim, v_strides[2], is_dim, blocks, starts, keep, done, tokens, limit, BLOCK_N, TILE_N
        )
        total = tl.where(spoiled[:, None], float("nan"), total)
    # Few rows: one tile in flight saves the registers that the long loops need.
    for first_edge in tl.range(done, tl.load(starts + 2) * BLOCK_N, TILE_N, num_stages=1):
        token, is_row = edge_rows(first_edge + tl.arange(0, TILE_N), starts, blocks, keep, tokens, BLOCK_N)
        place, mask = token[:, None].to(tl.int64), is_row[:, None] & is_dim
        keys = tl.load(k + place * k_strides[2] + k_dim, mask=mask, other=0.0)
        values = tl.load(v + place * v_strides[2] + v_dim, mask=mask, other=0.0)
        logits = dot(q_tile, tl.trans(keys), nothing, PRECISION) * scale
        seen = is_row[None, :]
        if CAUSAL:
            seen = seen & (token[None, :] <= limit[:, None])
            values = tl.where(_is_finite(values), values, 0.0)
        logits = tl.where(seen, logits, float("-inf"))
        top, mass, total = _accumulate(top, mass, total, logits, 1.0, values, PRECISION)

    if SHIFTS > 1:
        length = count_pooled(starts, BLOCK_N, SHIFTS)
        if spread is not None:
            spread += pooled
        for first_pooled in range(0, length, TILE_N):
            at = first_pooled + tl.arange(0, TILE_N)
            shift, token, is_row = pooled_rows(at, length, starts, blocks, BLOCK_N, SHIFTS)
            place = (first_row(shift, padded) + (token >> shift)).to(tl.int64)
            mask = is_row[:, None] & is_dim
            keys = tl.load(pooled_k + place[:, None] * DIM + d[None, :], mask=mask, other=0.0)
            values = tl.load(pooled_v + place[:, None] * DIM + d[None, :], mask=mask, other=0.0)
            logits = dot(q_tile, tl.trans(keys), nothing, PRECISION) * scale
            if keep is not None:
                bias = tl.load(row_bias + place, mask=is_row, other=float("-inf"))
            else:
                bias = pooled_bias(shift, token, is_row, tokens, SHIFTS)
            if spread is not None:
                spread_row = tl.load(spread + place, mask=is_row, other=0.0)
                logits += half_norm[:, None] * computed_once(spread_row)[None, :]
                bias = computed_once(bias)
            logits += bias[None, :]
            if CAUSAL:
                if keep is not None:
                    last = tl.load(row_last + place, mask=is_row, other=0)
                else:
                    last = tl.minimum(token + (1 << shift), tokens) - 1
                logits = tl.where(last[None, :] <= limit[:, None], logits, float("-inf"))
            top, mass, total = _accumulate(top, mass, total, logits, 1.0, values, PRECISION)

    is_empty = mass == 0.0  # the query saw nothing
    mass = tl.where(is_empty, 1.0, mass)
    total = total / mass[:, None]
    out += b * o_strides[0] + h * o_strides[1]
    out_tile = out + query[:, None].to(tl.int64) * o_strides[2] + d[None, :] * o_strides[3]
    tl.store(out_tile, total.to(out.dtype.element_ty), mask=is_query[:, None] & is_dim)
    natural = tl.where(is_empty, float("-inf"), (top + tl.log2(mass)) * 0.6931471805599453)
    tl.store(lse + head.to(tl.int64) * queries + query, natural, mask=is_query)


@triton.jit
def _accumulate(top, mass, total, products, scale, values, PRECISION: tl.constexpr):
    """Online softmax: add a tile's weights and weighted values to the running sums.

    Base-2 logits are `products * scale`, `scale >= 0`: the largest product is the largest logit, and the factor costs
    nothing where it is taken together with the difference.
    """
    new_top = tl.maximum(top, tl.max(products, axis=1) * scale)
    weights = tl.math.exp2(products * scale - new_top[:, None])
    fade = tl.math.exp2(top - new_top)
    mass = mass * fade + tl.sum(weights, axis=1)
    total = dot(weights.to(values.dtype), values, total * fade[:, None], PRECISION)
    return new_top, mass, total


@triton.jit
def _spoiled(
    query,
    v,
    v_dim,
    v_step,
    is_dim,
    blocks,
    starts,
    keep,
    done,
    tokens,
    limit,
    BLOCK_N: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """Which queries see a value at the causal frontier that is not finite: their output is nan, and no other's.

    There a weight of 0 may be that of a value that is hidden, and 0 * nan is nan.
    """
    spoiled = tl.zeros(query.shape, tl.int32)
    for first_edge in tl.range(done, tl.load(starts + 2) * BLOCK_N, TILE_N, num_stages=1):
        token, is_row = edge_rows(first_edge + tl.arange(0, TILE_N), starts, blocks, keep, tokens, BLOCK_N)
        place = token[:, None].to(tl.int64)
        values = tl.load(v + place * v_step + v_dim, mask=is_row[:, None] & is_dim, other=0.0)
        is_bad = tl.min(_is_finite(values).to(tl.int32), axis=1) == 0
        sees_bad = is_bad[None, :] & (token[None, :] <= limit[:, None])
        spoiled = tl.maximum(spoiled, tl.max(sees_bad.to(tl.int32), axis=1))
    return spoiled > 0


@triton.jit
def _is_finite(x):
    return x.to(tl.float32) * 0.0 == 0.0
