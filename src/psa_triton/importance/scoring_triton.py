"""`score_blocks` on a GPU: no score is written, only a number per query row and one per pair of blocks.

resolve tokens, of queries and of keys -> log-sum-exp of each query row -> mass of each block pair -> normalise

The two steps in the middle form the same logits: a row's log-sum-exp must be known before rows are reduced to blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch, current_backend, dim_tile, dot, dot_precision
from psa_triton.importance.estimators import Estimate
from psa_triton.kept import first_kept
from psa_triton.pyramid.pooling_triton import pool

_MOST_ROWS = 64
"""Rows that may stand for a block: they must fit every tile."""
_RESOLVED = 32
"""Rows whose tokens one program resolves."""
_LOG2_E = math.log2(math.e)
_CHUNK = 1024
"""Blocks of a row that are normalised at a time."""


def score_blocks(q: Tensor, k: Tensor, estimate: Estimate, blocks: Blocks, scale: float) -> Tensor:
    """What `scoring.score_blocks` computes; same arguments and result.

    Raises:
        ValueError: a block that more than 64 rows stand for, such as one of 512 tokens for `sampled`.
    """
    query_rows, key_rows = estimate.query_rows, estimate.key_rows
    for name, per_block in (("block_m", query_rows.per_block), ("block_n", key_rows.per_block)):
        if per_block > _MOST_ROWS:
            raise ValueError(
                f"{name}: GPU kernels expect blocks that at most {_MOST_ROWS} rows stand for, got {per_block} rows; "
                f"use smaller blocks, or impl='reference'"
            )
    if key_rows.group > 1:
        keep = None if blocks.key_mask is None else blocks.key_mask.to(torch.int8).contiguous()
        k, _ = pool(k, key_rows.group, key_rows.group, keep, finest=key_rows.group)
    query_tokens, key_tokens = (_resolve_tokens(q, query_rows.tokens), _resolve_tokens(k, key_rows.tokens))
    log_sums = q.new_empty(query_tokens.shape[:3], dtype=torch.float32)
    mass = q.new_empty(*q.shape[:2], blocks.rows, blocks.columns, dtype=torch.float32)
    log_count = None if key_rows.log_count is None else (key_rows.log_count * _LOG2_E).contiguous()
    rows, width = query_rows.tokens.shape
    columns, dim = key_tokens.shape[2], q.shape[3]
    tiles = _tiles(dim, width, q.dtype)
    arguments = dict(
        inputs=(q, k),
        tokens=(query_tokens, key_tokens),
        newest=query_rows.newest,
        needs=key_rows.needs.contiguous(),
        log_count=log_count,
        log_sums=log_sums,
        mass=mass,
        scale=scale / width * _LOG2_E,
        last_log_count=key_rows.last_log_count * _LOG2_E,
        sizes=(q.shape[1], q.shape[1] // k.shape[1], rows, columns, blocks.queries, blocks.keys),
        stride_needs=columns if key_rows.needs.dim() == 2 else 0,
        strides=(q.stride(), k.stride()),
    )
    constants = dict(
        DIM=dim,
        PART=tiles.part,
        WIDTH=width,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        PER_M=query_rows.per_block,
        PER_N=key_rows.per_block,
        TILE_M=tiles.m,
        TILE_N=tiles.n,
        CAUSAL=blocks.is_causal,
        PRECISION=dot_precision(q.dtype),
    )
    grid = (triton.cdiv(rows, tiles.m), q.shape[0] * q.shape[1])
    for reduce in ("none", estimate.reduce):
        Launch(_score_kernel, grid, arguments, constants | {"REDUCE": reduce}, tiles.warps, tiles.stages).run()
    _normalise(mass, blocks)
    return mass


def _resolve_tokens(x: Tensor, tokens: Tensor) -> Tensor:
    """`tokens`, `[R, w]` or `[B, R, w]`, for every head of `x`: int32 `[B, H, R, w]`, -1 in rows with NaN or inf."""
    batch, heads, _, dim = x.shape
    rows, width = tokens.shape[-2:]
    resolved = x.new_empty(batch, heads, rows, width, dtype=torch.int32)
    Launch(
        _resolve_tokens_kernel,
        (triton.cdiv(rows, _RESOLVED), batch * heads),
        dict(
            x=x,
            tokens=tokens.contiguous(),
            resolved=resolved,
            heads=heads,
            rows=rows,
            stride_tb=rows * width if tokens.dim() == 3 else 0,
            x_strides=x.stride(),
        ),
        dict(DIM=dim, DIM_TILE=dim_tile(dim), WIDTH=width, TILE=_RESOLVED),
    ).run()
    return resolved


def _normalise(mass: Tensor, blocks: Blocks) -> None:
    first_keys = None
    if blocks.key_mask is not None:
        first_keys = first_kept(blocks.key_mask, blocks.n).clamp_(max=blocks.keys).int()
    Launch(
        _normalise_kernel,
        (mass.numel() // blocks.columns,),
        dict(
            mass=mass,
            first_keys=first_keys,
            rows_per_item=mass.shape[1] * mass.shape[2],
            queries=blocks.queries,
            keys=blocks.keys,
        ),
        dict(BLOCK_M=blocks.m, BLOCK_N=blocks.n, CAUSAL=blocks.is_causal, CHUNK=_CHUNK),
    ).run()


class _Tiles(NamedTuple):
    """Hardware choices of the scoring kernel, which do not change results."""

    m: int
    """Query rows of a tile."""
    n: int
    """Key rows of a tile."""
    part: int
    """Channels of a token that are multiplied at a time."""
    warps: int
    """Warps that share a tile."""
    stages: int
    """Tiles whose loads are in flight."""


def _tiles(dim: int, width: int, dtype: torch.dtype) -> _Tiles:
    """For rows of `width` tokens, on what this build of torch runs on.

    Chosen so that nothing spills. Where a row is one short token, query rows are loaded once and several programs fit
    on a multiprocessor: one multiplies while another reduces. Longer rows are loaded again for every tile of key rows,
    which is larger so that they are loaded less often.
    """
    channels = dim_tile(dim)
    is_hip = current_backend() == "hip"
    if dtype == torch.float32:
        return _Tiles(64, 64, min(channels, 32), 4, 1 if is_hip else 2)
    if width == 1 and channels <= 128:
        return _Tiles(128, 64, channels, 8, 2 if is_hip else 3)
    return _Tiles(128, 128, min(channels, 64), 8, 2 if is_hip else 3)


@triton.jit
def _resolve_tokens_kernel(
    x,
    tokens,
    resolved,
    heads,
    rows,
    stride_tb,
    x_strides,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, DIM_TILE)
    x += (head // heads) * x_strides[0] + (head % heads) * x_strides[1]
    tokens += (head // heads) * stride_tb
    resolved += head * rows * WIDTH
    inside = (r[:, None] < rows) & (d[None, :] < DIM)
    exponent = tl.zeros((TILE,), tl.int32)  # the largest of a row; that of NaN and inf has all bits set
    for t in range(WIDTH):
        token = tl.load(tokens + r * WIDTH + t, mask=r < rows, other=0)
        values = tl.load(x + token[:, None] * x_strides[2] + d[None, :] * x_strides[3], mask=inside, other=0.0)
        exponent = tl.maximum(exponent, tl.max(values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7F800000, axis=1))
    for t in range(WIDTH):
        token = tl.load(tokens + r * WIDTH + t, mask=r < rows, other=0)
        tl.store(resolved + r * WIDTH + t, tl.where(exponent == 0x7F800000, -1, token).to(tl.int32), mask=r < rows)


@triton.jit
def _score_kernel(
    inputs,
    tokens,
    newest,
    needs,
    log_count,
    log_sums,
    mass,
    scale,
    last_log_count,
    sizes,
    stride_needs,
    strides,
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
    q, k = inputs
    query_tokens, key_tokens = tokens
    heads, group, rows, columns, queries, keys = sizes
    q_strides, k_strides = strides
    PARTS: tl.constexpr = (DIM + PART - 1) // PART
    # Late rows see most under a causal mask: they start first, so that none is left running at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b, h = head // heads, head % heads
    q += b * q_strides[0] + h * q_strides[1]
    k += b * k_strides[0] + h // group * k_strides[1]
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
        query_tile = _load_rows(q, query_tokens, r, rows, 0, q_strides[2], q_strides[3], DIM, PART, WIDTH)
    top = tl.full((TILE_M,), -3.0e38, tl.float32)  # finite, so that a row that has seen nothing meets no inf - inf
    total = tl.zeros((TILE_M,), tl.float32)
    if REDUCE != "none":
        log_sum = tl.load(log_sums + r, mask=r < rows, other=3.0e38)

    in_sight = _blocks_in_sight((tile + 1) * (TILE_M // PER_M), queries, keys, BLOCK_M, BLOCK_N, CAUSAL)
    for first in range(0, in_sight * PER_N, TILE_N):
        c = first + tl.arange(0, TILE_N)
        products = tl.zeros((TILE_M, TILE_N), tl.float32)
        if PARTS * WIDTH == 1:
            key_tile = _load_rows(k, key_tokens, c, columns, 0, k_strides[2], k_strides[3], DIM, PART, WIDTH)
            products = dot(query_tile, tl.trans(key_tile), products, PRECISION)
        else:
            for p in range(PARTS * WIDTH):
                query_part = _load_rows(q, query_tokens, r, rows, p, q_strides[2], q_strides[3], DIM, PART, WIDTH)
                key_part = _load_rows(k, key_tokens, c, columns, p, k_strides[2], k_strides[3], DIM, PART, WIDTH)
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
