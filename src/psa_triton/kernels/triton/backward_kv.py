"""The gradient of keys and values: a program holds rows of a key block at one level, and walks what reads them.

Levels run from the coarsest to level 1. Each leaves its tokens' share, a row's gradient over its count, to the next
finer one, which adds it to its own: so level 1 writes the gradient of the tokens, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.dots import Backend, current_backend, dim_tile, dot, dot_precision
from psa_triton.kernels.triton.backward import Attended
from psa_triton.kernels.triton.rows import load_lse, load_whole, pooled_bias, strides
from psa_triton.kernels.triton.schedule import BlockLists, list_blocks
from psa_triton.kernels.triton.tiles import backward_kv_tiles
from psa_triton.launch import Launch
from psa_triton.pyramid.triton_kernels import pooled_rows

Pair = tuple[Tensor, Tensor]
"""Of keys and of values."""


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
    return list_blocks(levels.reshape(batch, key_heads, -1, key_blocks).mT, shifts, frontier=None)


def key_value_gradient(attended: Attended, delta: Tensor, readers: BlockLists) -> Pair:
    """Gradients of keys and values.

    Args:
        attended: the attention and its results' gradients.
        delta: from `backward_q.query_gradient`.
        readers: from `list_readers`.

    Returns:
        Both, shape and dtype of k, contiguous.
    """
    shares = None
    for shift in reversed(range(1, readers.shifts)):
        shares = _row_gradient(attended, delta, readers, shares, shift, torch.float32)
    return _row_gradient(attended, delta, readers, shares, 0, attended.k.dtype)


def _row_gradient(
    attended: Attended, delta: Tensor, readers: BlockLists, coarser: Pair | None, shift: int, dtype: torch.dtype
) -> Pair:
    batch, key_heads, tokens, dim = attended.k.shape
    shape = (batch, key_heads, triton.cdiv(tokens, 1 << shift), dim)
    shares = (attended.k.new_empty(shape, dtype=dtype), attended.v.new_empty(shape, dtype=dtype))
    plan_row_gradient(attended, delta, readers, coarser, shares, shift).run()
    return shares


def plan_row_gradient(
    attended: Attended,
    delta: Tensor,
    readers: BlockLists,
    coarser: Pair | None,
    shares: Pair,
    shift: int,
    *,
    backend: Backend | None = None,
) -> Launch:
    """The launch behind one level of `key_value_gradient`.

    Args:
        attended, delta, readers: as there.
        coarser: what the next coarser level left, float32 `[B, Hkv, ceil(Nk / 2 ** (shift + 1)), D]`; None if none did.
        shares: where to write what reaches a token of each row, `[B, Hkv, ceil(Nk / 2 ** shift), D]`, contiguous. Those
            of keys lack the factor `scale` until level 1 applies it.
        shift: log2 of the level.
        backend: what to launch on; by default that of this build of torch.
    """
    q, k, v = attended.q, attended.k, attended.v
    batch, heads, queries, dim = q.shape
    backend = backend or current_backend()
    block_rows = attended.block_n >> shift
    tiles = backward_kv_tiles(dim, q.dtype, attended.block_m, block_rows, backend)
    if shift:
        first = pooled_rows(k.shape[2], attended.block_n, 2, 1 << (shift - 1))
        k, v = attended.pooled_k[:, :, first:], attended.pooled_v[:, :, first:]
    coarser_k, coarser_v = coarser or (None, None)
    return Launch(
        _row_gradient_kernel,
        (readers.starts.shape[2] * triton.cdiv(block_rows, tiles.n), batch * k.shape[1]),
        dict(
            grad_out=attended.grad_out,
            q=q,
            k=k,
            v=v,
            lse=attended.lse,
            delta=delta,
            blocks=readers.blocks,
            starts=readers.starts,
            coarser_k=coarser_k,
            coarser_v=coarser_v,
            share_k=shares[0],
            share_v=shares[1],
            scale=attended.scale,
            heads=heads,
            key_heads=k.shape[1],
            queries=queries,
            tokens=attended.k.shape[2],
            columns=readers.blocks.shape[3],
            **strides("g", attended.grad_out),
            **strides("q", q),
            **strides("k", k),
            **strides("v", v),
        ),
        dict(
            DIM=dim,
            DIM_TILE=dim_tile(dim),
            BLOCK_M=attended.block_m,
            BLOCK_ROWS=block_rows,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            SHIFT=shift,
            SHIFTS=readers.shifts,
            CAUSAL=attended.is_causal,
            PRECISION=dot_precision(q.dtype, backend),
        ),
        warps=tiles.warps,
        stages=tiles.stages,
    )


@triton.jit
def _row_gradient_kernel(
    grad_out,
    q,
    k,
    v,
    lse,
    delta,
    blocks,
    starts,
    coarser_k,
    coarser_v,
    share_k,
    share_v,
    scale,
    heads,
    key_heads,
    queries,
    tokens,
    columns,
    stride_gb,
    stride_gh,
    stride_gn,
    stride_gd,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_vd,
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
    tiles_a_block: tl.constexpr = (BLOCK_ROWS + TILE_N - 1) // TILE_N
    block = tl.program_id(0) // tiles_a_block
    head = tl.program_id(1).to(tl.int64)
    b, key_head = head // key_heads, head % key_heads
    group = heads // key_heads
    query_blocks = tl.cdiv(queries, BLOCK_M)

    # Places are told from the tile's first row on: what is needed behind the loop shall not fill registers in it.
    first = tl.program_id(0) * min(TILE_N, BLOCK_ROWS)
    rows = tl.cdiv(tokens, 1 << SHIFT)
    n = tl.arange(0, TILE_N)
    is_row = n < tl.minimum(rows - first, BLOCK_ROWS)
    count = tl.minimum(tokens - ((first + n) << SHIFT), 1 << SHIFT)
    d = tl.arange(0, DIM_TILE)
    is_entry = is_row[:, None] & (d[None, :] < DIM)
    at = n[:, None].to(tl.int64)
    k += b * stride_kb + key_head * stride_kh + first.to(tl.int64) * stride_kn
    v += b * stride_vb + key_head * stride_vh + first.to(tl.int64) * stride_vn
    keys = tl.load(k + at * stride_kn + d[None, :] * stride_kd, mask=is_entry, other=0.0)
    values = tl.load(v + at * stride_vn + d[None, :] * stride_vd, mask=is_entry, other=0.0)

    bias = pooled_bias(tl.full((TILE_N,), SHIFT, tl.int32), (first + n) << SHIFT, is_row, tokens, SHIFT + 1)[:, None]
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

    m = tl.arange(0, TILE_M)
    first_head = b * heads + key_head * group
    q += b * stride_qb + key_head * group * stride_qh
    grad_out += b * stride_gb + key_head * group * stride_gh
    log2_scale = scale * 1.4426950408889634
    nothing = tl.zeros((TILE_N, TILE_M), tl.float32)
    lists = head * (tl.num_programs(0) // tiles_a_block) + block
    starts += lists * (SHIFTS + 2) + SHIFT + 1
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
        q_tile = load_whole(q + h * stride_qh + place * stride_qn, d[None, :] * stride_qd, DIM, DIM_TILE)
        g_tile = load_whole(grad_out + h * stride_gh + place * stride_gn, d[None, :] * stride_gd, DIM, DIM_TILE)
        of_head = (first_head + h) * queries
        lse_row = load_lse(lse + of_head, query, is_query)
        delta_row = tl.load(delta + of_head + query, mask=is_query, other=0.0)

        # Transposed, [rows, queries]: the weights are a left operand of the next product as they are.
        logits = dot(keys, tl.trans(q_tile), nothing, PRECISION) * log2_scale
        if SHIFT > 0:
            logits += bias
        if CAUSAL:
            last_token = ((first + n) << SHIFT) + count - 1
            limit = query + tokens - queries
            logits = tl.where(last_token[:, None] <= limit[None, :], logits, float("-inf"))
        weights = tl.math.exp2(logits - lse_row[None, :])
        grad_v = dot(weights.to(g_tile.dtype), g_tile, grad_v, PRECISION)
        grad_weights = dot(values, tl.trans(g_tile), nothing, PRECISION)
        grad_logits = weights * (grad_weights - delta_row[None, :])
        grad_k = dot(grad_logits.to(q_tile.dtype), q_tile, grad_k, PRECISION)

    if SHIFT > 0:
        grad_k /= tokens_a_row
        grad_v /= tokens_a_row
    else:
        grad_k *= scale
    share_k += (head * rows + first) * DIM
    share_v += (head * rows + first) * DIM
    target = n[:, None] * DIM + d[None, :]
    tl.store(share_k + target, grad_k.to(share_k.dtype.element_ty), mask=is_entry)
    tl.store(share_v + target, grad_v.to(share_v.dtype.element_ty), mask=is_entry)
