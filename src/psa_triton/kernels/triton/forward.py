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

from psa_triton.dots import Backend, current_backend, dim_tile, dot, dot_precision
from psa_triton.kernels.triton.rows import (
    computed_once,
    count_pooled,
    edge_rows,
    load_whole,
    pooled_bias,
    pooled_rows,
    query_rows,
    squared_norm,
    strides,
    tile_rows,
    whole_tile,
    whole_tiles,
)
from psa_triton.kernels.triton.schedule import BlockLists
from psa_triton.kernels.triton.tiles import forward_tiles
from psa_triton.launch import Launch
from psa_triton.pyramid.triton_kernels import KeptRows, first_row


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    spread: Tensor | None,
    kept: KeptRows | None,
    lists: BlockLists,
    *,
    block_m: int,
    block_n: int,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention over the lists.

    Args:
        q: `[B, Hq, Nq, D]`, any strides.
        k, v: `[B, Hkv, Nk, D]`, any strides.
        pooled_k, pooled_v: their coarser levels, as `pyramid.triton_kernels.pool` makes them from level 2 on.
        spread: of the rows of `pooled_k`, `pool_with_spread`'s, by which their logits are corrected; None for none.
        kept: what a key mask leaves of tokens and rows; None if it leaves all.
        lists: of the levels `[B, Hq, nq, nk]`.
        block_m, block_n: tokens of a query block and of a key block.
        is_causal: query `i` sees a group if its last kept token is at most `i + Nk - Nq`.
        scale: factor of the logits.

    Returns:
        The output, shape, dtype and strides of q, and the log-sum-exp, float32 `[B, Hq, Nq]`.
    """
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    plan_attend(
        q,
        k,
        v,
        pooled_k,
        pooled_v,
        spread,
        kept,
        lists,
        out,
        lse,
        block_m=block_m,
        block_n=block_n,
        is_causal=is_causal,
        scale=scale,
    ).run()
    return out, lse


def plan_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    spread: Tensor | None,
    kept: KeptRows | None,
    lists: BlockLists,
    out: Tensor,
    lse: Tensor,
    *,
    block_m: int,
    block_n: int,
    is_causal: bool,
    scale: float,
    backend: Backend | None = None,
) -> Launch:
    """The launch behind `attend`, for `backend` or that of this build of torch."""
    batch, heads, queries, dim = q.shape
    backend = backend or current_backend()
    tiles = forward_tiles(dim, q.dtype, block_m, backend)
    return Launch(
        _attend_kernel,
        (lists.starts.shape[2] * max(block_m // tiles.m, 1), batch * heads),
        dict(
            q=q,
            k=k,
            v=v,
            pooled_k=pooled_k,
            pooled_v=pooled_v,
            spread=spread,
            keep=kept and kept.keep,
            row_bias=kept and kept.bias,
            row_last=kept and kept.last,
            blocks=lists.blocks,
            starts=lists.starts,
            out=out,
            lse=lse,
            scale=abs(scale) * math.log2(math.e),
            heads=heads,
            group=heads // k.shape[1],
            queries=queries,
            tokens=k.shape[2],
            columns=lists.blocks.shape[3],
            **strides("q", q),
            **strides("k", k),
            **strides("v", v),
            **strides("o", out),
        ),
        dict(
            DIM=dim,
            DIM_TILE=dim_tile(dim),
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            SHIFTS=lists.shifts,
            CAUSAL=is_causal,
            NEGATIVE=scale < 0,
            PRECISION=dot_precision(q.dtype, backend),
        ),
        warps=tiles.warps,
        stages=tiles.stages,
    )


@triton.jit
def _attend_kernel(
    q,
    k,
    v,
    pooled_k,
    pooled_v,
    spread,
    keep,
    row_bias,
    row_last,
    blocks,
    starts,
    out,
    lse,
    scale,
    heads,
    group,
    queries,
    tokens,
    columns,
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
    stride_ob,
    stride_oh,
    stride_on,
    stride_od,
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
    q += b * stride_qb + h * stride_qh
    k += b * stride_kb + key_head * stride_kh
    v += b * stride_vb + key_head * stride_vh
    padded = tl.cdiv(tokens, BLOCK_N) * BLOCK_N
    pooled = (b * key_heads + key_head) * first_row(SHIFTS, padded) if SHIFTS > 1 else 0
    pooled_k += pooled * DIM
    pooled_v += pooled * DIM
    if keep is not None:
        keep += b * tokens
        row_bias += b * first_row(SHIFTS, padded)
        row_last += b * first_row(SHIFTS, padded)

    q_tile = tl.load(
        q + query[:, None].to(tl.int64) * stride_qn + d[None, :] * stride_qd, mask=is_query[:, None] & is_dim, other=0.0
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
    k_dim, v_dim = d[None, :] * stride_kd, d[None, :] * stride_vd
    for t in range(0, whole_tiles(starts, BLOCK_N, TILE_N)):
        first = whole_tile(t, blocks, BLOCK_N, TILE_N)
        keys = load_whole(k + first * stride_kn + n * stride_kn, k_dim, DIM, DIM_TILE)
        values = load_whole(v + first * stride_vn + n * stride_vn, v_dim, DIM, DIM_TILE)
        products = dot(q_tile, tl.trans(keys), nothing, PRECISION)
        top, mass, total = _accumulate(top, mass, total, products, scale, values, PRECISION)

    limit = query + tokens - queries
    done = whole_tiles(starts, BLOCK_N, TILE_N) * TILE_N
    if CAUSAL:
        spoiled = _spoiled(
            query, v, v_dim, stride_vn, is_dim, blocks, starts, keep, done, tokens, limit, BLOCK_N, TILE_N
        )
        total = tl.where(spoiled[:, None], float("nan"), total)
    # Few rows: one tile in flight saves the registers that the long loops need.
    for first_edge in tl.range(done, tl.load(starts + 2) * BLOCK_N, TILE_N, num_stages=1):
        token, is_row = edge_rows(first_edge + tl.arange(0, TILE_N), starts, blocks, keep, tokens, BLOCK_N)
        place, mask = token[:, None].to(tl.int64), is_row[:, None] & is_dim
        keys = tl.load(k + place * stride_kn + k_dim, mask=mask, other=0.0)
        values = tl.load(v + place * stride_vn + v_dim, mask=mask, other=0.0)
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
    out += b * stride_ob + h * stride_oh
    out_tile = out + query[:, None].to(tl.int64) * stride_on + d[None, :] * stride_od
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
    stride_vn,
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
        values = tl.load(v + place * stride_vn + v_dim, mask=is_row[:, None] & is_dim, other=0.0)
        is_bad = tl.min(_is_finite(values).to(tl.int32), axis=1) == 0
        sees_bad = is_bad[None, :] & (token[None, :] <= limit[:, None])
        spoiled = tl.maximum(spoiled, tl.max(sees_bad.to(tl.int32), axis=1))
    return spoiled > 0


@triton.jit
def _is_finite(x):
    return x.to(tl.float32) * 0.0 == 0.0
