"""The gradient of keys and values: a program holds rows of a key block at one level, and walks what reads them.

Levels run from the coarsest to level 1. Each leaves its tokens' share, a row's gradient over its count, to the next
finer one, which adds it to its own: so level 1 writes the gradient of the tokens, rounded once.

Where logits are corrected, a row's spread has a gradient `g` too. A key moves it by `2 / (count * D) * (k - mean)`: the
part of the mean goes into the row's share at once, and the *pull* `2 * g / (count * D)` is left for level 1 to multiply
by the key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch, dim_tile, dot, dot_precision, tile_of_head
from psa_triton.kernels.triton.backward_q import QueryTerms, Results
from psa_triton.kernels.triton.operands import Operands, with_wide_rows
from psa_triton.kernels.triton.rows import in_eights, load_lse, load_whole
from psa_triton.kernels.triton.schedule import BlockLists, list_blocks
from psa_triton.kernels.triton.tiles import choose_tiles
from psa_triton.pyramid import SPREAD_LEVELS
from psa_triton.pyramid.pooling_triton import pooled_rows


class Shares(NamedTuple):
    """What reaches a token of each row of a level; those of keys and pulls lack the factor `scale`."""

    keys: Tensor | None
    """`[B, Hkv, R, D]`, as `values`; contiguous. None coarser than the coarsest level."""
    values: Tensor | None
    pulls: Tensor | None
    """float32 `[B, Hkv, R]`, at levels whose spread has a gradient."""


def list_readers(levels: Tensor, key_heads: int, shifts: int) -> BlockLists:
    """For each key block, what reads it: query block `i` of the group's head `g` as `g * nq + i`, by level.

    Args:
        levels: int8 `[B, Hq, nq, nk]`, any strides.
        key_heads: `Hkv`.
        shifts: number of levels, `1 + log2(coarsest)`.

    Returns:
        The lists of `[B, Hkv, nk, group * nq]`; segment 0 is empty.
    """
    batch, _, _, key_blocks = levels.shape
    return list_blocks(levels.reshape(batch, key_heads, -1, key_blocks).mT, shifts, split=None)


def key_value_gradient(
    operands: Operands, results: Results, terms: QueryTerms, readers: BlockLists, blocks: Blocks, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values.

    Args:
        operands: what was read.
        results: what came of it.
        terms: from `backward_q.query_gradient`.
        readers: from `list_readers`.

    Returns:
        Both, shape and dtype of k, contiguous.
    """
    operands = operands._replace(q=with_wide_rows(operands.q))
    results = replace(results, grad_out=with_wide_rows(results.grad_out))
    shares = Shares(None, None, None)
    for shift in reversed(range(readers.shifts)):
        shares = _row_gradient(operands, results, terms, readers, blocks, scale, shares, shift)
    assert shares.keys is not None and shares.values is not None
    return shares.keys, shares.values


def _row_gradient(
    operands: Operands,
    results: Results,
    terms: QueryTerms,
    readers: BlockLists,
    blocks: Blocks,
    scale: float,
    coarser: Shares,
    shift: int,
) -> Shares:
    """One level: level 1 applies the factor `scale`, and its shares, in the dtype of k, are the gradients."""
    q, k, v, spread = operands.q, operands.k, operands.v, None
    row_bias, row_last = operands.row_bias, operands.row_last
    if row_bias is not None and row_last is not None:
        level = pooled_rows(k.shape[2], blocks.n, 1, 1 << shift) - pooled_rows(
            k.shape[2], blocks.n, 1 << shift, 1 << shift
        )
        row_bias, row_last = row_bias[:, level:], row_last[:, level:]
    batch, key_heads, tokens, dim = k.shape
    dtype = torch.float32 if shift else k.dtype
    keys, values = (k.new_empty(batch, key_heads, triton.cdiv(tokens, 1 << shift), dim, dtype=dtype) for _ in "kv")
    pulls = None
    if shift:
        first = pooled_rows(tokens, blocks.n, 2, 1 << (shift - 1))
        k, v = operands.pooled_k[:, :, first:], operands.pooled_v[:, :, first:]
        if operands.spread is not None and 1 << shift in SPREAD_LEVELS:
            spread = operands.spread[:, :, first:]
            pulls = spread.new_empty(keys.shape[:3])
    shares = Shares(keys, values, pulls)
    block_rows = blocks.n >> shift
    tiles = choose_tiles("row_gradient", q, blocks.m, block_rows, blocks.is_causal, operands.spread is not None)
    Launch(
        _row_gradient_kernel,
        (batch * key_heads * blocks.columns * triton.cdiv(block_rows, tiles.n),),
        dict(
            inputs=(results.grad_out, q, k, v),
            terms=(results.lse, terms.delta, spread, terms.half_norm),
            kept=(row_bias, row_last),
            lists=(readers.blocks, readers.starts),
            coarser=coarser,
            shares=shares,
            scale=scale,
            sizes=(q.shape[1], key_heads, q.shape[2], tokens, readers.blocks.shape[3]),
            strides=tuple(x.stride() for x in (results.grad_out, q, k, v)),
            stride_spread=0 if spread is None else spread.stride(1),
            stride_rows=0 if row_bias is None else row_bias.stride(0),
        ),
        dict(
            DIM=dim,
            DIM_TILE=dim_tile(dim),
            BLOCK_M=blocks.m,
            BLOCK_ROWS=block_rows,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            SHIFT=shift,
            SHIFTS=readers.shifts,
            CAUSAL=blocks.is_causal,
            PRECISION=dot_precision(q.dtype),
        ),
        warps=tiles.warps,
        stages=tiles.stages,
    ).run()
    return shares


@triton.jit
def _row_gradient_kernel(
    inputs,
    terms,
    kept,
    lists,
    coarser,
    shares,
    scale,
    sizes,
    strides,
    stride_spread,
    stride_rows,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    SHIFT: tl.constexpr,
    SHIFTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    grad_out, q, k, v = inputs
    lse, delta, spread, half_norm = terms
    row_bias, row_last = kept
    blocks, starts = lists
    coarser_k, coarser_v, coarser_pull = coarser
    share_k, share_v, share_pull = shares
    heads, key_heads, queries, tokens, columns = sizes
    g_strides, q_strides, k_strides, v_strides = strides
    tiles_a_block: tl.constexpr = (BLOCK_ROWS + TILE_N - 1) // TILE_N
    key_blocks = tl.cdiv(tokens, BLOCK_ROWS << SHIFT)
    tile, head = tile_of_head(key_blocks * tiles_a_block)
    b, key_head = head // key_heads, head % key_heads
    group = heads // key_heads
    query_blocks = tl.cdiv(queries, BLOCK_M)

    # Places are told from the tile's first row on: what is needed behind the loop shall not fill registers in it.
    first = tile * min(TILE_N, BLOCK_ROWS)
    rows = tl.cdiv(tokens, 1 << SHIFT)
    n = tl.arange(0, TILE_N)
    is_row = n < tl.minimum(rows - first, BLOCK_ROWS)
    count = tl.minimum(tokens - ((first + n) << SHIFT), 1 << SHIFT)
    last_token = ((first + n) << SHIFT) + count - 1
    d = tl.arange(0, DIM_TILE)
    is_stored, is_share = is_row, is_row[:, None] & (d[None, :] < DIM)
    if row_bias is not None:
        bias = tl.load(row_bias + b * stride_rows + first + n, mask=is_row, other=float("-inf"))
        last_token = tl.load(row_last + b * stride_rows + first + n, mask=is_row, other=0)
        count = (tl.math.exp2(bias) + 0.5).to(tl.int32)
        is_row = bias > float("-inf")
    else:
        bias = tl.where(
            is_row, tl.where(count == 1 << SHIFT, SHIFT * 1.0, tl.log2(count.to(tl.float32))), float("-inf")
        )
    is_entry = is_row[:, None] & (d[None, :] < DIM)
    at = n[:, None].to(tl.int64)
    k += b * k_strides[0] + key_head * k_strides[1] + first.to(tl.int64) * k_strides[2]
    v += b * v_strides[0] + key_head * v_strides[1] + first.to(tl.int64) * v_strides[2]
    keys = tl.load(k + at * k_strides[2] + d[None, :], mask=is_entry, other=0.0)
    values = tl.load(v + at * v_strides[2] + d[None, :], mask=is_entry, other=0.0)

    tokens_a_row = tl.maximum(count, 1)[:, None].to(tl.float32)
    if coarser_k is not None:
        parents = head * tl.cdiv(rows, 2) * DIM
        parent = ((first + n) >> 1)[:, None].to(tl.int64) * DIM + d[None, :]
        grad_k = tl.load(coarser_k + parents + parent, mask=is_entry, other=0.0)
        grad_v = tl.load(coarser_v + parents + parent, mask=is_entry, other=0.0)
        if SHIFT > 0:
            grad_k *= tokens_a_row
            grad_v *= tokens_a_row
    else:
        grad_k = tl.zeros((TILE_N, DIM_TILE), tl.float32)
        grad_v = tl.zeros((TILE_N, DIM_TILE), tl.float32)

    log2_scale = scale * 1.4426950408889634
    if spread is not None:
        spread_row = tl.load(spread + head * stride_spread + first + n, mask=is_row, other=0.0) * scale * log2_scale
        pull = tl.zeros((TILE_N,), tl.float32)

    m = tl.arange(0, TILE_M)
    first_head = b * heads + key_head * group
    q += in_eights(b * q_strides[0] + key_head * group * q_strides[1], DIM)
    grad_out += in_eights(b * g_strides[0] + key_head * group * g_strides[1], DIM)
    q_head, q_step = in_eights(q_strides[1], DIM), in_eights(q_strides[2], DIM)
    g_head, g_step = in_eights(g_strides[1], DIM), in_eights(g_strides[2], DIM)
    nothing = tl.zeros((TILE_N, TILE_M), tl.float32)
    lists = head * key_blocks + tile // tiles_a_block
    starts += lists * (2 * SHIFTS + 1) + 2 * SHIFT + 1
    begin = tl.load(starts)
    blocks += lists * columns + begin
    tiles_a_reader: tl.constexpr = max(BLOCK_M // TILE_M, 1)
    for t in range(0, (tl.load(starts + 1) - begin) * tiles_a_reader):
        reader = tl.load(blocks + t // tiles_a_reader)
        h = (reader // query_blocks).to(tl.int64)
        query = reader % query_blocks * BLOCK_M + t % tiles_a_reader * TILE_M + m
        is_query = (query < queries) & (m < BLOCK_M)
        # A query that is not there is another one, without weight.
        place = tl.minimum(query, queries - 1)[:, None].to(tl.int64)
        q_tile = load_whole(q + h * q_head + place * q_step, d[None, :] * q_strides[3], DIM, DIM_TILE)
        g_tile = load_whole(grad_out + h * g_head + place * g_step, d[None, :] * g_strides[3], DIM, DIM_TILE)
        of_head = (first_head + h) * queries
        lse_row = load_lse(lse + of_head, query, is_query)
        delta_row = tl.load(delta + of_head + query, mask=is_query, other=0.0)

        # Transposed, [rows, queries]: the weights are a left operand of the next product as they are.
        logits = dot(keys, tl.trans(q_tile), nothing, PRECISION) * log2_scale
        if SHIFT > 0:
            logits += bias[:, None]
        if spread is not None:
            half_norm_row = tl.load(half_norm + of_head + query, mask=is_query, other=0.0)[None, :]
            logits += spread_row[:, None] * half_norm_row
        if CAUSAL:
            limit = query + tokens - queries
            logits = tl.where(last_token[:, None] <= limit[None, :], logits, float("-inf"))
        weights = tl.math.exp2(logits - lse_row[None, :])
        grad_v = dot(weights.to(g_tile.dtype), g_tile, grad_v, PRECISION)
        grad_weights = dot(values, tl.trans(g_tile), nothing, PRECISION)
        grad_logits = weights * (grad_weights - delta_row[None, :])
        if spread is not None:
            pull += tl.sum(grad_logits * half_norm_row, axis=1)
        grad_k = dot(grad_logits.to(q_tile.dtype), q_tile, grad_k, PRECISION)

    if SHIFT > 0:
        grad_k /= tokens_a_row
        grad_v /= tokens_a_row
    if spread is not None:
        pull = pull * scale * 2.0 / (DIM * tl.maximum(count, 1).to(tl.float32))
        grad_k -= tl.where(pull[:, None] == 0.0, 0.0, pull[:, None] * keys.to(tl.float32))
    if coarser_pull is not None:
        parents = head * tl.cdiv(rows, 2) + ((first + n) >> 1)
        parent_pull = tl.load(coarser_pull + parents, mask=is_row, other=0.0)
        if spread is not None:
            pull += parent_pull
        else:
            grad_k += tl.where(parent_pull[:, None] == 0.0, 0.0, parent_pull[:, None] * keys.to(tl.float32))
    if share_pull is not None:
        pull = tl.where(is_row, pull, 0.0) if row_bias is not None else pull
        tl.store(share_pull + head * rows + first + n, pull, mask=is_stored)
    if SHIFT == 0:
        grad_k *= scale
    share_k += (head * rows + first) * DIM
    share_v += (head * rows + first) * DIM
    target = n[:, None] * DIM + d[None, :]
    if row_bias is not None:  # what is left out gets zeros, whatever its weights would have been
        grad_k = tl.where(is_entry, grad_k, 0.0)
        grad_v = tl.where(is_entry, grad_v, 0.0)
    tl.store(share_k + target, grad_k.to(share_k.dtype.element_ty), mask=is_share)
    tl.store(share_v + target, grad_v.to(share_v.dtype.element_ty), mask=is_share)
