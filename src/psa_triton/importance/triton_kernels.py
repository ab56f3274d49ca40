"""`score_blocks` on a GPU: no score is written, only a number per query row and one per pair of blocks.

resolve tokens, of queries and of keys -> log-sum-exp of each query row -> mass of each block pair -> normalise

The two steps in the middle form the same logits: a row's log-sum-exp must be known before rows are reduced to blocks.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.dots import current_backend, dim_tile, dot, dot_precision
from psa_triton.importance.rows import BlockGrid, Estimate
from psa_triton.importance.tiles import scoring_tiles
from psa_triton.kept import first_kept
from psa_triton.launch import Launch
from psa_triton.pyramid.triton_kernels import plan_pool

_MOST_ROWS = 64
"""Rows that may stand for a block: they must fit every tile."""
_RESOLVED = 32
"""Rows whose tokens one program resolves."""
_CHUNK = 1024
"""Blocks of a row that are normalised at a time."""


def score_blocks(q: Tensor, k: Tensor, estimate: Estimate, grid: BlockGrid, *, scale: float) -> Tensor:
    """What `scoring.score_blocks` computes; same arguments and result.

    Raises:
        ValueError: a block that more than 64 rows stand for, such as one of 512 tokens for `sampled`.
    """
    launches, importance = plan_score_blocks(q, k, estimate, grid, scale=scale)
    for launch in launches:
        launch.run()
    return importance


def plan_score_blocks(
    q: Tensor, k: Tensor, estimate: Estimate, grid: BlockGrid, *, scale: float
) -> tuple[list[Launch], Tensor]:
    """The launches behind `score_blocks`, in their order, and what they fill."""
    query_rows, key_rows = estimate.query_rows, estimate.key_rows
    for name, per_block in (("block_m", query_rows.per_block), ("block_n", key_rows.per_block)):
        if per_block > _MOST_ROWS:
            raise ValueError(
                f"{name}: GPU kernels expect blocks that at most {_MOST_ROWS} rows stand for, got {per_block} rows; "
                f"use smaller blocks, or impl='reference'"
            )
    launches = []
    if key_rows.group > 1:
        means = k.new_empty(*k.shape[:2], len(key_rows.tokens), k.shape[3])
        keep = None if grid.key_mask is None else grid.key_mask.to(torch.int8).contiguous()
        group = key_rows.group
        launches.append(plan_pool(k, means, block_n=group, finest=group, coarsest=group, keep=keep))
        k = means
    query_tokens = q.new_empty(*q.shape[:2], *query_rows.tokens.shape, dtype=torch.int32)
    key_tokens = k.new_empty(*k.shape[:2], *key_rows.tokens.shape[-2:], dtype=torch.int32)
    launches.append(_plan_resolve_tokens(q, query_rows.tokens, query_tokens))
    launches.append(_plan_resolve_tokens(k, key_rows.tokens, key_tokens))

    log_sums = q.new_empty(query_tokens.shape[:3], dtype=torch.float32)
    importance = q.new_empty(*q.shape[:2], grid.query_blocks, grid.key_blocks, dtype=torch.float32)
    tensors: dict[str, Tensor | None] = dict(
        q=q,
        k=k,
        query_tokens=query_tokens,
        key_tokens=key_tokens,
        newest=query_rows.newest,
        needs=key_rows.needs.contiguous(),
        log_count=None if key_rows.log_count is None else (key_rows.log_count * math.log2(math.e)).contiguous(),
        log_sums=log_sums,
        mass=importance,
    )
    for reduce in ("none", estimate.reduce):
        launches.append(_plan_score(tensors, estimate, grid, reduce, scale))
    launches.append(_plan_normalise(importance, grid))
    return launches, importance


def _plan_resolve_tokens(x: Tensor, tokens: Tensor, resolved: Tensor) -> Launch:
    """Write `tokens`, `[R, w]` or `[B, R, w]`, for every head of `x` to `resolved [B, H, R, w]`.

    It is -1 in rows that hold NaN or inf.
    """
    batch, heads, _, dim = x.shape
    rows, width = tokens.shape[-2:]
    return Launch(
        _resolve_tokens_kernel,
        (triton.cdiv(rows, _RESOLVED), batch * heads),
        dict(
            x=x,
            tokens=tokens.contiguous(),
            resolved=resolved,
            heads=heads,
            rows=rows,
            stride_tb=rows * width if tokens.dim() == 3 else 0,
            **_strides("x", x),
        ),
        dict(DIM=dim, DIM_TILE=dim_tile(dim), WIDTH=width, TILE=_RESOLVED),
    )


def _plan_score(
    tensors: dict[str, Tensor | None], estimate: Estimate, grid: BlockGrid, reduce: str, scale: float
) -> Launch:
    q, k = tensors["q"], tensors["k"]
    assert q is not None and k is not None
    query_rows, key_rows = estimate.query_rows, estimate.key_rows
    (rows, width), columns = query_rows.tokens.shape, key_rows.tokens.shape[-2]
    batch, heads, _, dim = q.shape
    tiles = scoring_tiles(dim, width, q.dtype)
    return Launch(
        _score_kernel,
        (triton.cdiv(rows, tiles.m), batch * heads),
        dict(
            **tensors,
            scale=scale / width * math.log2(math.e),
            last_log_count=key_rows.last_log_count * math.log2(math.e),
            heads=heads,
            group=heads // k.shape[1],
            rows=rows,
            columns=columns,
            queries=grid.query_tokens,
            keys=grid.key_tokens,
            stride_needs=columns if key_rows.needs.dim() == 2 else 0,
            **_strides("q", q),
            **_strides("k", k),
        ),
        dict(
            DIM=dim,
            PART=tiles.part,
            WIDTH=width,
            BLOCK_M=grid.block_m,
            BLOCK_N=grid.block_n,
            PER_M=query_rows.per_block,
            PER_N=key_rows.per_block,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            CAUSAL=grid.is_causal,
            REDUCE=reduce,
            PRECISION=dot_precision(q.dtype, current_backend()),
        ),
        warps=tiles.warps,
        stages=tiles.stages,
    )


def _plan_normalise(mass: Tensor, grid: BlockGrid) -> Launch:
    first_keys = None
    if grid.key_mask is not None:
        first_keys = first_kept(grid.key_mask, grid.block_n).clamp_(max=grid.key_tokens).int()
    return Launch(
        _normalise_kernel,
        (mass.numel() // grid.key_blocks,),
        dict(
            mass=mass,
            first_keys=first_keys,
            rows_per_item=mass.shape[1] * mass.shape[2],
            queries=grid.query_tokens,
            keys=grid.key_tokens,
        ),
        dict(BLOCK_M=grid.block_m, BLOCK_N=grid.block_n, CAUSAL=grid.is_causal, CHUNK=_CHUNK),
    )


def _strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"stride_{name}{axis}": step for axis, step in zip("bhnd", x.stride(), strict=True)}


@triton.jit
def _resolve_tokens_kernel(
    x,
    tokens,
    resolved,
    heads,
    rows,
    stride_tb,
    stride_xb,
    stride_xh,
    stride_xn,
    stride_xd,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, DIM_TILE)
    x += (head // heads) * stride_xb + (head % heads) * stride_xh
    tokens += (head // heads) * stride_tb
    resolved += head * rows * WIDTH
    inside = (r[:, None] < rows) & (d[None, :] < DIM)
    exponent = tl.zeros((TILE,), tl.int32)  # the largest of a row; that of NaN and inf has all bits set
    for t in range(WIDTH):
        token = tl.load(tokens + r * WIDTH + t, mask=r < rows, other=0)
        values = tl.load(x + token[:, None] * stride_xn + d[None, :] * stride_xd, mask=inside, other=0.0)
        exponent = tl.maximum(exponent, tl.max(values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7F800000, axis=1))
    for t in range(WIDTH):
        token = tl.load(tokens + r * WIDTH + t, mask=r < rows, other=0)
        tl.store(resolved + r * WIDTH + t, tl.where(exponent == 0x7F800000, -1, token).to(tl.int32), mask=r < rows)


@triton.jit
def _score_kernel(
    q,
    k,
    query_tokens,
    key_tokens,
    newest,
    needs,
    log_count,
    log_sums,
    mass,
    scale,
    last_log_count,
    heads,
    group,
    rows,
    columns,
    queries,
    keys,
    stride_needs,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    DIM: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PER_M: tl.constexpr,
    PER_N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    REDUCE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of query rows against all key rows in sight: `log_sums` if REDUCE is none, else `mass` from them."""
    PARTS: tl.constexpr = (DIM + PART - 1) // PART
    # Late rows see most under a causal mask: they start first, so that none is left running at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b, h = head // heads, head % heads
    q += b * stride_qb + h * stride_qh
    k += b * stride_kb + h // group * stride_kh
    query_tokens += head * rows * WIDTH
    key_tokens += (b * (heads // group) + h // group) * columns * WIDTH
    needs += b * stride_needs
    if log_count is not None:
        log_count += b * columns
    log_sums += head * rows
    blocks = tl.cdiv(keys, BLOCK_N)
    mass += head * tl.cdiv(queries, BLOCK_M) * blocks

    r = tile * TILE_M + tl.arange(0, TILE_M)
    limit = tl.load(newest + r, mask=r < rows, other=0).to(tl.int32) + keys - queries
    if PARTS * WIDTH == 1:
        query_tile = _load_rows(q, query_tokens, r, rows, 0, stride_qn, stride_qd, DIM, PART, WIDTH)
    top = tl.full((TILE_M,), -3.0e38, tl.float32)  # finite, so that a row that has seen nothing meets no inf - inf
    total = tl.zeros((TILE_M,), tl.float32)
    if REDUCE != "none":
        log_sum = tl.load(log_sums + r, mask=r < rows, other=3.0e38)

    in_sight = _blocks_in_sight((tile + 1) * (TILE_M // PER_M), queries, keys, BLOCK_M, BLOCK_N, CAUSAL)
    for first in range(0, in_sight * PER_N, TILE_N):
        c = first + tl.arange(0, TILE_N)
        products = tl.zeros((TILE_M, TILE_N), tl.float32)
        if PARTS * WIDTH == 1:
            key_tile = _load_rows(k, key_tokens, c, columns, 0, stride_kn, stride_kd, DIM, PART, WIDTH)
            products = dot(query_tile, tl.trans(key_tile), products, PRECISION)
        else:
            for p in range(PARTS * WIDTH):
                query_part = _load_rows(q, query_tokens, r, rows, p, stride_qn, stride_qd, DIM, PART, WIDTH)
                key_part = _load_rows(k, key_tokens, c, columns, p, stride_kn, stride_kd, DIM, PART, WIDTH)
                products = dot(query_part, tl.trans(key_part), products, PRECISION)

        # A row that is not finite is read as zeros. Its probability is that of logit 0, its pairs' mass is inf.
        is_spoiled = tl.load(key_tokens + c * WIDTH, mask=c < columns, other=0) < 0
        if log_count is not None:
            bias = tl.load(log_count + c, mask=c < columns, other=float("-inf"))
            is_spoiled = is_spoiled & (bias > float("-inf"))  # a row without a kept key stands for nothing
        else:
            bias = tl.where(c < columns - 1, 0.0, tl.where(c < columns, last_log_count, float("-inf")))
        if REDUCE != "none":
            bias = tl.where(is_spoiled, float("inf"), bias)
        logits = products * scale + bias[None, :]
        if CAUSAL:
            need = tl.load(needs + c, mask=c < columns, other=0).to(tl.int32)
            if REDUCE != "none":
                # Seen by all: a pair of blocks may be in sight while none of its rows is.
                need = tl.where(is_spoiled, -1 - queries, need)
            logits = tl.where(need[None, :] <= limit[:, None], logits, float("-inf"))

        if REDUCE == "none":
            new_top = tl.maximum(top, tl.max(logits, axis=1))
            total = total * tl.math.exp2(top - new_top) + tl.sum(tl.math.exp2(logits - new_top[:, None]), axis=1)
            top = new_top
        else:
            pairs = _reduce_pairs(logits, log_sum, PER_M, PER_N, REDUCE)
            i = tile * (TILE_M // PER_M) + tl.arange(0, TILE_M // PER_M)
            j = first // PER_N + tl.arange(0, TILE_N // PER_N)
            exists = (i[:, None] < tl.cdiv(queries, BLOCK_M)) & (j[None, :] < blocks)
            tl.store(mass + i[:, None].to(tl.int64) * blocks + j[None, :], pairs, mask=exists)
    if REDUCE == "none":
        # A total is at least 1, that of the top logit; beside a row that sees nothing every probability shall be 0.
        tl.store(log_sums + r, tl.where(total > 0.0, top + tl.log2(tl.maximum(total, 1.0)), 3.0e38), mask=r < rows)


@triton.jit
def _load_rows(x, tokens, r, rows, p, stride_n, stride_d, DIM: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Part `p` of rows `r`, `PART` channels of one of their tokens; zeros in rows that are none or not finite."""
    PARTS: tl.constexpr = (DIM + PART - 1) // PART
    token = tl.load(tokens + r * WIDTH + p // PARTS, mask=r < rows, other=-1)
    d = p % PARTS * PART + tl.arange(0, PART)
    pointers = x + token[:, None].to(tl.int64) * stride_n + d[None, :] * stride_d
    return tl.load(pointers, mask=(token >= 0)[:, None] & (d[None, :] < DIM), other=0.0)


@triton.jit
def _reduce_pairs(logits, log_sum, PER_M: tl.constexpr, PER_N: tl.constexpr, REDUCE: tl.constexpr):
    """Base-2 logits `[rows, columns]` -> one number a pair, `[query blocks, key blocks]`: see `Estimate.reduce`."""
    TILE_M: tl.constexpr = logits.shape[0]
    TILE_N: tl.constexpr = logits.shape[1]
    if REDUCE == "max":  # exp2 is monotone: it can wait until there is one number per pair
        by_block = tl.max(tl.reshape(logits, (TILE_M, TILE_N // PER_N, PER_N)), axis=2) - log_sum[:, None]
        return tl.math.exp2(tl.max(tl.reshape(by_block, (TILE_M // PER_M, PER_M, TILE_N // PER_N)), axis=1))
    probabilities = tl.math.exp2(logits - log_sum[:, None])
    if REDUCE == "norm":
        probabilities *= probabilities
    by_block = tl.sum(tl.reshape(probabilities, (TILE_M, TILE_N // PER_N, PER_N)), axis=2)
    total = tl.sum(tl.reshape(by_block, (TILE_M // PER_M, PER_M, TILE_N // PER_N)), axis=1)
    return tl.math.sqrt(total) if REDUCE == "norm" else total


@triton.jit
def _blocks_in_sight(last, queries, keys, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr):
    """Key blocks that query blocks before `last` can see at least in part."""
    blocks = tl.cdiv(keys, BLOCK_N)
    if CAUSAL:
        newest = tl.minimum(last * BLOCK_M, queries) - 1 + keys - queries
        blocks = tl.where(newest < 0, 0, tl.minimum(blocks, newest // BLOCK_N + 1))
    return blocks


@triton.jit
def _normalise_kernel(
    mass,
    first_keys,
    rows_per_item,
    queries,
    keys,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One row of `mass`, in place: see `scoring._normalise`. What is not in sight was not written before."""
    row = tl.program_id(0)
    blocks = tl.cdiv(keys, BLOCK_N)
    i = row % tl.cdiv(queries, BLOCK_M)
    in_sight = _blocks_in_sight(i + 1, queries, keys, BLOCK_M, BLOCK_N, CAUSAL)
    limit = tl.minimum((i + 1) * BLOCK_M, queries) - 1 + keys - queries if CAUSAL else keys - 1
    visible = in_sight
    if first_keys is not None:
        first_keys += (row // rows_per_item).to(tl.int64) * blocks
        visible = 0
    mass += row.to(tl.int64) * blocks
    total = 0.0
    spoiled = 0
    for first in range(0, in_sight, CHUNK):
        j = first + tl.arange(0, CHUNK)
        is_seen = j < in_sight
        if first_keys is not None:
            is_seen = is_seen & (tl.load(first_keys + j, mask=is_seen, other=0) <= limit)
            visible += tl.sum(is_seen.to(tl.int32))
        x = tl.load(mass + j, mask=is_seen, other=0.0)
        is_finite = x < float("inf")
        total += tl.sum(tl.where(is_finite, x, 0.0))
        spoiled += tl.sum((~is_finite).to(tl.int32))

    is_scored = total > 0.0
    whole = spoiled + tl.where(is_scored, 1.0, (visible - spoiled).to(tl.float32) / blocks)
    whole = tl.maximum(whole, 1.0e-30)  # nothing is in sight
    total = tl.where(is_scored, total, 1.0)
    for first in range(0, blocks, CHUNK):
        j = first + tl.arange(0, CHUNK)
        is_seen = j < in_sight
        if first_keys is not None:
            is_seen = is_seen & (tl.load(first_keys + j, mask=is_seen, other=0) <= limit)
        x = tl.load(mass + j, mask=is_seen, other=0.0)
        share = tl.where(is_scored, x / total, 1.0 / blocks)
        share = tl.where(x < float("inf"), share, 1.0)
        tl.store(mass + j, tl.where(is_seen, share / whole, 0.0), mask=j < blocks)
