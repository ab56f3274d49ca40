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
    edge_rows,
    in_eights,
    level_list,
    level_start,
    listed_row,
    load_lse,
    load_whole,
    query_tile,
    squared_norm,
)
from psa_triton.kernels.triton.schedule import BlockLists
from psa_triton.kernels.triton.tiles import choose_tiles


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
    tiles = choose_tiles("query_gradient", q, blocks.m, blocks.n, blocks.is_causal, operands.spread is not None)
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
    LOG_BLOCK_N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    EDGE_N: tl.constexpr,
    SHIFTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    grad_out, grad_lse = grads
    q, k, v, pooled_k, pooled_v, _, spread, row_bias, row_last = operands
    blocks, starts = lists
    batch, heads, group, queries, tokens, columns = sizes
    out, lse = results
    grad_q, delta, half_norm = outputs
    g_strides, q_strides, k_strides, v_strides, o_strides = strides
    tile, b, h = query_tile(batch, heads, queries, BLOCK_M, TILE_M, CAUSAL)
    first_query = tile * min(BLOCK_M, TILE_M)
    head = b * heads + h
    key_head = h // group
    row_of_blocks = head * tl.cdiv(queries, BLOCK_M) + first_query // BLOCK_M
    blocks += row_of_blocks * columns
    starts += row_of_blocks * (2 * SHIFTS + 1)

    d = tl.arange(0, DIM_TILE)
    is_dim = d[None, :] < DIM
    k += in_eights(b * k_strides[0] + key_head * k_strides[1], DIM)
    v += in_eights(b * v_strides[0] + key_head * v_strides[1], DIM)
    padded = tl.cdiv(tokens, 1 << LOG_BLOCK_N) << LOG_BLOCK_N
    all_rows = 2 * padded - (2 * padded >> SHIFTS)
    pooled = (b * (heads // group) + key_head) * (all_rows - padded)
    pooled_k += pooled * DIM
    pooled_v += pooled * DIM

    m = tl.arange(0, TILE_M)
    is_query = m < tl.minimum(queries - first_query, BLOCK_M)
    is_entry = is_query[:, None] & is_dim
    places = m[:, None].to(tl.int64)
    q += b * q_strides[0] + h * q_strides[1] + first_query.to(tl.int64) * q_strides[2]
    q_tile = tl.load(q + places * q_strides[2] + d[None, :] * q_strides[3], mask=is_entry, other=0.0)
    grad_out += b * g_strides[0] + h * g_strides[1] + first_query.to(tl.int64) * g_strides[2]
    g_tile = tl.load(grad_out + places * g_strides[2] + d[None, :] * g_strides[3], mask=is_entry, other=0.0)
    out += b * o_strides[0] + h * o_strides[1] + first_query.to(tl.int64) * o_strides[2]
    o_tile = tl.load(out + places * o_strides[2] + d[None, :] * o_strides[3], mask=is_entry, other=0.0)
    of_tile = head * queries + first_query
    lse_row = load_lse(lse + of_tile, m, is_query)
    delta_row = tl.sum(g_tile.to(tl.float32) * o_tile.to(tl.float32), axis=1)
    if grad_lse is not None:
        delta_row -= tl.load(grad_lse + of_tile + m, mask=is_query, other=0.0)
    # The gradient of a log-sum-exp of -inf may be anything, and must not spoil weights that are zeros.
    delta_row = tl.where(lse_row == float("inf"), 0.0, delta_row)
    tl.store(delta + of_tile + m, delta_row, mask=is_query)
    lse_row, delta_row = lse_row[:, None], delta_row[:, None]

    grad_q += of_tile * DIM

    log2_scale = scale * 1.4426950408889634
    total = tl.zeros((TILE_M, DIM_TILE), tl.float32)
    nothing = tl.zeros((TILE_M, TILE_N), tl.float32)
    no_edge = tl.zeros((TILE_M, EDGE_N), tl.float32)
    if spread is not None:
        spread += pooled - padded
        half = squared_norm(q_tile) * 0.5
        tl.store(half_norm + of_tile + m, half, mask=is_query)
        gain = half * (scale * scale * 1.4426950408889634)
        along = tl.zeros((TILE_M,), tl.float32)  # what reaches the queries in their own direction
    limit = first_query + m + (tokens - queries)
    n = tl.arange(0, TILE_N)
    for shift in range(SHIFTS):
        first_row, level_k, level_v, k_step, v_step = level_start(
            shift, k, v, k_strides[2], v_strides[2], pooled_k, pooled_v, padded, DIM
        )
        log_rows = LOG_BLOCK_N - shift
        first_mark = b * all_rows + first_row
        listed, whole, length = level_list(starts, blocks, log_rows)
        starts += 2
        listed_n, within = listed + (n >> log_rows), n & ((1 << log_rows) - 1)
        for t in range(whole // TILE_N):
            row = listed_row(t * TILE_N, listed_n, log_rows) + within
            place = row[:, None].to(tl.int64)
            keys = load_whole(level_k + place * k_step, d[None, :], DIM, DIM_TILE)
            values = load_whole(level_v + place * v_step, d[None, :], DIM, DIM_TILE)
            logits = dot(q_tile, tl.trans(keys), nothing, PRECISION) * log2_scale
            if spread is not None:
                spread_row = tl.load(spread + first_row + row, mask=(row >= 0) & (shift > 0), other=0.0)
                spread_row = computed_once(spread_row)[None, :]
                logits += gain[:, None] * spread_row
            grad_logits = _logit_gradients(logits, g_tile, values, lse_row - shift * 1.0, delta_row, nothing, PRECISION)
            if spread is not None:
                along += tl.sum(grad_logits * spread_row, axis=1)
            total = dot(grad_logits.to(keys.dtype), keys, total, PRECISION)

        # Few rows: small tiles, and one in flight, save the registers that the long loop needs.
        for at in tl.range(whole // TILE_N * TILE_N, length, EDGE_N, num_stages=1):
            edge = at + tl.arange(0, EDGE_N)
            row, bias, last = edge_rows(edge, listed, length, row_bias, row_last, first_mark, shift, tokens, log_rows)
            is_row = bias > float("-inf")
            place, mask = row[:, None].to(tl.int64), is_row[:, None] & is_dim
            keys = tl.load(level_k + place * k_step + d[None, :], mask=mask, other=0.0)
            values = tl.load(level_v + place * v_step + d[None, :], mask=mask, other=0.0)
            logits = dot(q_tile, tl.trans(keys), no_edge, PRECISION) * log2_scale + computed_once(bias)[None, :]
            if spread is not None:
                spread_row = tl.load(spread + first_row + row, mask=is_row & (shift > 0), other=0.0)
                spread_row = computed_once(spread_row)[None, :]
                logits += gain[:, None] * spread_row
            if CAUSAL:
                logits = tl.where(computed_once(last)[None, :] <= limit[:, None], logits, float("-inf"))
            grad_logits = _logit_gradients(logits, g_tile, values, lse_row, delta_row, no_edge, PRECISION)
            if spread is not None:
                along += tl.sum(grad_logits * spread_row, axis=1)
            total = dot(grad_logits.to(keys.dtype), keys, total, PRECISION)

    if spread is not None:
        q_tile = tl.load(q + places * q_strides[2] + d[None, :] * q_strides[3], mask=is_entry, other=0.0)
        total += (along * scale)[:, None] * q_tile.to(tl.float32)
    tl.store(grad_q + places * DIM + d[None, :], (total * scale).to(grad_q.dtype.element_ty), mask=is_entry)


@triton.jit
def _logit_gradients(logits, g_tile, values, lse_row, delta_row, nothing, PRECISION: tl.constexpr):
    weights = tl.math.exp2(logits - lse_row)
    grad_weights = dot(g_tile, tl.trans(values), nothing, PRECISION)
    return weights * (grad_weights - delta_row)
