"""The gradient of queries: the forward's walk once more, with weights from its log-sum-exp.

With weights `p = exp(logit - lse)` and their gradient `dp = grad_out @ v^T`, logits have `ds = p * (dp - delta)`, where
`delta` is the row sum of `grad_out * out`, less the gradient of the log-sum-exp; and queries have `scale * ds @ k`.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    load_lse,
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
from psa_triton.kernels.triton.tiles import backward_q_tiles
from psa_triton.pyramid.pooling_triton import first_row


@dataclass(frozen=True)
class Results:
    """What an attention gave, and the gradient that reached it."""

    out: Tensor
    """The output, `[B, Hq, Nq, D]`, any strides."""
    lse: Tensor
    """The log-sum-exp, float32 `[B, Hq, Nq]`, contiguous."""
    grad_out: Tensor
    """Shape and dtype of the output, any strides."""
    grad_lse: Tensor | None
    """Like the log-sum-exp; None if nothing depends on it."""


@dataclass(frozen=True)
class QueryTerms:
    """What the gradient of keys and values needs of each query, float32 `[B, Hq, Nq]`."""

    delta: Tensor
    half_norm: Tensor | None
    """`|q| ** 2 / 2`, where logits are corrected."""


def query_gradient(
    operands: Operands, results: Results, lists: BlockLists, blocks: Blocks, scale: float
) -> tuple[Tensor, QueryTerms]:
    """Gradient of the queries, and what the gradient of keys and values needs of each.

    Args:
        operands: what was read.
        results: what came of it.
        lists: what each query block reads, as for `forward.attend`.

    Returns:
        The gradient, shape and dtype of q, contiguous, and the terms.
    """
    q, lse = operands.q, results.lse
    grad_q = q.new_empty(q.shape)
    terms = QueryTerms(torch.empty_like(lse), None if operands.spread is None else torch.empty_like(lse))
    read = (results.grad_out, q, operands.k, operands.v, results.out)
    arguments = dict(
        grads=(results.grad_out, results.grad_lse),
        results=(results.out, lse),
        outputs=(grad_q, terms.delta, terms.half_norm),
        scale=scale,
        strides=tuple(x.stride() for x in read),
    )
    tiles = backward_q_tiles(q.shape[3], q.dtype, blocks.m)
    walk(_query_gradient_kernel, operands, lists, blocks, tiles, arguments, {})
    return grad_q, terms


@triton.jit
def _query_gradient_kernel(
    grads,
    operands,
    results,
    lists,
    outputs,
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
    PRECISION: tl.constexpr,
):
    grad_out, grad_lse = grads
    q, k, v, pooled_k, pooled_v, spread, keep, row_bias, row_last = operands
    blocks, starts = lists
    heads, group, queries, tokens, columns = sizes
    out, lse = results
    grad_q, delta, half_norm = outputs
    g_strides, q_strides, k_strides, v_strides, o_strides = strides
    # Late query blocks see most under a causal mask: they start first, so that none is left running at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0) if CAUSAL else tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b, h = head // heads, head % heads
    key_head = h // group
    i, query, is_query = query_rows(tile, queries, BLOCK_M, TILE_M)
    row = head * tl.cdiv(queries, BLOCK_M) + i
    blocks += row * columns
    starts += row * (SHIFTS + 2)

    d = tl.arange(0, DIM_TILE)
    is_dim = d[None, :] < DIM
    k += b * k_strides[0] + key_head * k_strides[1]
    v += b * v_strides[0] + key_head * v_strides[1]
    padded = tl.cdiv(tokens, BLOCK_N) * BLOCK_N
    pooled = (b * (heads // group) + key_head) * first_row(SHIFTS, padded) if SHIFTS > 1 else 0
    pooled_k += pooled * DIM
    pooled_v += pooled * DIM
    if keep is not None:
        keep += b * tokens
        row_bias += b * first_row(SHIFTS, padded)
        row_last += b * first_row(SHIFTS, padded)

    # Places are told from the tile's first query on: what is needed behind the loops shall not fill registers in them.
    first_query = tile.to(tl.int64) * min(BLOCK_M, TILE_M)
    m = tl.arange(0, TILE_M)[:, None].to(tl.int64)
    is_entry = (m < tl.minimum(queries - first_query, BLOCK_M)) & is_dim
    q += b * q_strides[0] + h * q_strides[1] + first_query * q_strides[2]
    q_tile = tl.load(q + m * q_strides[2] + d[None, :] * q_strides[3], mask=is_entry, other=0.0)
    grad_out += b * g_strides[0] + h * g_strides[1] + first_query * g_strides[2]
    g_tile = tl.load(grad_out + m * g_strides[2] + d[None, :] * g_strides[3], mask=is_entry, other=0.0)
    out += b * o_strides[0] + h * o_strides[1] + first_query * o_strides[2]
    o_tile = tl.load(out + m * o_strides[2] + d[None, :] * o_strides[3], mask=is_entry, other=0.0)
    of_head = head * queries
    lse_row = load_lse(lse + of_head, query, is_query)
    delta_row = tl.sum(g_tile.to(tl.float32) * o_tile.to(tl.float32), axis=1)
    if grad_lse is not None:
        delta_row -= tl.load(grad_lse + of_head + query, mask=is_query, other=0.0)
    # The gradient of a log-sum-exp of -inf may be anything, and must not spoil weights that are zeros.
    delta_row = tl.where(lse_row == float("inf"), 0.0, delta_row)
    tl.store(delta + of_head + query, delta_row, mask=is_query)
    lse_row, delta_row = lse_row[:, None], delta_row[:, None]

    grad_q += (of_head + first_query) * DIM

    log2_scale = scale * 1.4426950408889634
    total = tl.zeros((TILE_M, DIM_TILE), tl.float32)
    nothing = tl.zeros((TILE_M, TILE_N), tl.float32)
    n = tile_rows(BLOCK_N, TILE_N)
    k_dim, v_dim = d[None, :] * k_strides[3], d[None, :] * v_strides[3]
    for t in range(0, whole_tiles(starts, BLOCK_N, TILE_N)):
        place = whole_tile(t, blocks, BLOCK_N, TILE_N) + n
        keys = load_whole(k + place * k_strides[2], k_dim, DIM, DIM_TILE)
        values = load_whole(v + place * v_strides[2], v_dim, DIM, DIM_TILE)
        logits = dot(q_tile, tl.trans(keys), nothing, PRECISION) * log2_scale
        total = _accumulate(total, logits, g_tile, keys, values, lse_row, delta_row, nothing, PRECISION)

    limit = query + tokens - queries
    done = whole_tiles(starts, BLOCK_N, TILE_N) * TILE_N
    # Few rows: one tile in flight saves the registers that the long loops need.
    for first_edge in tl.range(done, tl.load(starts + 2) * BLOCK_N, TILE_N, num_stages=1):
        token, is_row = edge_rows(first_edge + tl.arange(0, TILE_N), starts, blocks, keep, tokens, BLOCK_N)
        place, mask = token[:, None].to(tl.int64), is_row[:, None] & is_dim
        keys = tl.load(k + place * k_strides[2] + k_dim, mask=mask, other=0.0)
        values = tl.load(v + place * v_strides[2] + v_dim, mask=mask, other=0.0)
        logits = dot(q_tile, tl.trans(keys), nothing, PRECISION) * log2_scale
        seen = is_row[None, :]
        if CAUSAL:
            seen = seen & (token[None, :] <= limit[:, None])
        logits = tl.where(seen, logits, float("-inf"))
        total = _accumulate(total, logits, g_tile, keys, values, lse_row, delta_row, nothing, PRECISION)

    if spread is not None:
        spread += pooled
        half = squared_norm(q_tile) * 0.5
        tl.store(half_norm + of_head + query, half, mask=is_query)
        gain = half * (scale * scale * 1.4426950408889634)
        along = tl.zeros((TILE_M,), tl.float32)  # what reaches the queries in their own direction
    if SHIFTS > 1:
        length = count_pooled(starts, BLOCK_N, SHIFTS)
        for first_pooled in range(0, length, TILE_N):
            at = first_pooled + tl.arange(0, TILE_N)
            shift, token, is_row = pooled_rows(at, length, starts, blocks, BLOCK_N, SHIFTS)
            place = (first_row(shift, padded) + (token >> shift)).to(tl.int64)
            mask = is_row[:, None] & is_dim
            keys = tl.load(pooled_k + place[:, None] * DIM + d[None, :], mask=mask, other=0.0)
            values = tl.load(pooled_v + place[:, None] * DIM + d[None, :], mask=mask, other=0.0)
            logits = dot(q_tile, tl.trans(keys), nothing, PRECISION) * log2_scale
            if keep is not None:
                bias = tl.load(row_bias + place, mask=is_row, other=float("-inf"))
            else:
                bias = pooled_bias(shift, token, is_row, tokens, SHIFTS)
            if spread is not None:
                spread_row = computed_once(tl.load(spread + place, mask=is_row, other=0.0))[None, :]
                logits += gain[:, None] * spread_row
                bias = computed_once(bias)
            logits += bias[None, :]
            if CAUSAL:
                if keep is not None:
                    last = tl.load(row_last + place, mask=is_row, other=0)
                else:
                    last = tl.minimum(token + (1 << shift), tokens) - 1
                logits = tl.where(last[None, :] <= limit[:, None], logits, float("-inf"))
            if spread is not None:
                grad_logits = _logit_gradients(logits, g_tile, values, lse_row, delta_row, nothing, PRECISION)
                along += tl.sum(grad_logits * spread_row, axis=1)
                total = dot(grad_logits.to(keys.dtype), keys, total, PRECISION)
            else:
                total = _accumulate(total, logits, g_tile, keys, values, lse_row, delta_row, nothing, PRECISION)

    if spread is not None:
        q_tile = tl.load(q + m * q_strides[2] + d[None, :] * q_strides[3], mask=is_entry, other=0.0)
        total += (along * scale)[:, None] * q_tile.to(tl.float32)
    tl.store(grad_q + m * DIM + d[None, :], (total * scale).to(grad_q.dtype.element_ty), mask=is_entry)


@triton.jit
def _accumulate(total, logits, g_tile, keys, values, lse_row, delta_row, nothing, PRECISION: tl.constexpr):
    """Add what reaches the queries through a tile of rows, from its logits in base 2."""
    grad_logits = _logit_gradients(logits, g_tile, values, lse_row, delta_row, nothing, PRECISION)
    return dot(grad_logits.to(keys.dtype), keys, total, PRECISION)


@triton.jit
def _logit_gradients(logits, g_tile, values, lse_row, delta_row, nothing, PRECISION: tl.constexpr):
    weights = tl.math.exp2(logits - lse_row)
    grad_weights = dot(g_tile, tl.trans(values), nothing, PRECISION)
    return weights * (grad_weights - delta_row)
