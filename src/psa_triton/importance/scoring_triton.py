"""`score_blocks` on a GPU: no score is written, only a number per query row and one per pair of blocks.

gather rows, of queries and of keys -> mass of each block pair -> normalise

A row's log-sum-exp must be known before rows are reduced to blocks. So a program that walks the keys notes a number for
each query row and key block (the largest logit there, or the log of a sum), and reduces these when it is at the end.
Notes are a program's own, and it goes on with other rows: they take what the programs that run at a time need.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import (
    Launch,
    current_backend,
    current_target,
    dim_tile,
    dot,
    dot_precision,
    tile_of_head,
    warps_of_row,
)
from psa_triton.importance.estimators import Estimate
from psa_triton.kept import first_kept
from psa_triton.pyramid.pooling_triton import pool

_MOST_ROWS = 64
"""Rows that may stand for a block: they must fit every tile."""
_GATHERED = 32
"""Rows that one program gathers."""
_LOG2_E = math.log2(math.e)
_REDUCED = 16
"""Key blocks whose notes are reduced at a time."""
_NONE = tl.constexpr(-1.0e37)
"""The logarithm of nothing: finite, as is its double, so that no difference is inf - inf."""


def score_blocks(q: Tensor, k: Tensor, estimate: Estimate, blocks: Blocks, scale: float) -> Tensor:
    """What `scoring.score_blocks` computes; same arguments and result.

    Raises:
        ValueError: a block that more than 64 rows stand for, such as one of 512 tokens for `sampled`.
    """
    query_rows, key_rows = estimate.query_rows, estimate.key_rows
    if scale < 0:
        q, scale = -q, -scale  # the largest product is the largest logit
    for name, per_block in (("block_m", query_rows.per_block), ("block_n", key_rows.per_block)):
        if per_block > _MOST_ROWS:
            raise ValueError(
                f"{name}: GPU kernels expect blocks that at most {_MOST_ROWS} rows stand for, got {per_block} rows; "
                f"use smaller blocks, or impl='reference'"
            )
    if key_rows.group > 1:
        keep = None if blocks.key_mask is None else blocks.key_mask.to(torch.int8).contiguous()
        k, _ = pool(k, key_rows.group, key_rows.group, keep, finest=key_rows.group)
    log_count = None if key_rows.log_count is None else (key_rows.log_count * _LOG2_E).contiguous()
    (rows, width), columns, dim = query_rows.tokens.shape, key_rows.tokens.shape[-2], q.shape[3]
    tiles = _tiles(dim, width, key_rows.per_block, q.dtype, current_target(q.device))
    spoiled = q.new_empty(*k.shape[:2], blocks.columns, dtype=torch.int8)
    q_rows = _gather_rows(q, query_rows.tokens, tiles.m, tiles.part)
    k_rows = _gather_rows(k, key_rows.tokens, tiles.n, tiles.part, key_rows.per_block, log_count, spoiled)
    mass = q.new_empty(*q.shape[:2], blocks.rows, blocks.columns, dtype=torch.float32)
    count = q_rows.shape[2] // tiles.m * q.shape[0] * q.shape[1]
    programs = min(count, _programs_at_a_time(q.device))
    notes = q.new_empty(programs, blocks.columns, tiles.m, dtype=torch.float32)
    arguments = dict(
        q_rows=q_rows,
        k_rows=k_rows,
        newest=query_rows.newest,
        needs=key_rows.needs.contiguous(),
        log_count=log_count,
        notes=notes,
        mass=mass,
        scale=scale / width * _LOG2_E,
        last_log_count=key_rows.last_log_count * _LOG2_E,
        sizes=(count, q.shape[1], q.shape[1] // k.shape[1], rows, columns, blocks.queries, blocks.keys),
        row=q_rows.shape[3],
        stride_keys=k_rows.stride(1),
        stride_needs=columns if key_rows.needs.dim() == 2 else 0,
    )
    constants = dict(
        ROW=q_rows.shape[3],
        PART=tiles.part,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        PER_M=query_rows.per_block,
        PER_N=key_rows.per_block,
        TILE_M=tiles.m,
        TILE_N=tiles.n,
        CAUSAL=blocks.is_causal,
        REDUCE=estimate.reduce,
        CHUNK=_REDUCED,
        PRECISION=dot_precision(q.dtype),
    )
    Launch(_score_kernel, (programs,), arguments, constants, tiles.warps, tiles.stages).run()
    _normalise(mass, spoiled, blocks)
    return mass


def _programs_at_a_time(device: torch.device) -> int:
    """Programs that share a GPU, two a multiprocessor: each goes on with another tile when it is done with one."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _gather_rows(
    x: Tensor,
    tokens: Tensor,
    tile: int,
    part: int,
    per_block: int = 1,
    log_count: Tensor | None = None,
    spoiled: Tensor | None = None,
) -> Tensor:
    """The tokens of each row side by side, so that scores are a plain product of matrices.

    Args:
        x: queries or keys.
        tokens: `[R, w]` or `[B, R, w]`.
        tile: what the number of rows is filled up to a multiple of, by rows of zeros.
        part: what the numbers of a token are filled up to a multiple of, by zeros.
        per_block: rows of a block, a divisor of `tile`.
        log_count: float32 `[B, R]`, -inf for rows that stand for nothing, whatever they hold.
        spoiled: int8 `[B, H, blocks]`, to be filled: 1 for blocks with a row that holds NaN or inf, 0 for others.

    Returns:
        `[B, H, R', w * D']`, zeros in rows with NaN or inf.
    """
    batch, heads, _, dim = x.shape
    rows, width = tokens.shape[-2:]
    padded, channels = triton.cdiv(rows, tile) * tile, triton.cdiv(dim, part) * part
    gathered = x.new_empty(batch, heads, padded, width * channels)
    a_program = max(_GATHERED, per_block)
    Launch(
        _gather_rows_kernel,
        (triton.cdiv(padded, a_program) * batch * heads,),
        dict(
            x=x,
            tokens=tokens.contiguous(),
            log_count=log_count,
            gathered=gathered,
            spoiled=spoiled,
            heads=heads,
            rows=rows,
            padded=padded,
            stride_tb=rows * width if tokens.dim() == 3 else 0,
            x_strides=x.stride(),
        ),
        dict(DIM=dim, CHANNELS=channels, DIM_TILE=dim_tile(channels), WIDTH=width, PER_BLOCK=per_block, TILE=a_program),
    ).run()
    return gathered


def _normalise(mass: Tensor, spoiled: Tensor, blocks: Blocks) -> None:
    first_keys = None
    if blocks.key_mask is not None:
        first_keys = first_kept(blocks.key_mask, blocks.n).clamp_(max=blocks.keys).int()
    width = triton.next_power_of_2(blocks.columns)
    Launch(
        _normalise_kernel,
        (mass.numel() // blocks.columns,),
        dict(
            mass=mass,
            spoiled=spoiled,
            first_keys=first_keys,
            heads=mass.shape[1],
            group=mass.shape[1] // spoiled.shape[1],
            queries=blocks.queries,
            keys=blocks.keys,
        ),
        dict(BLOCK_M=blocks.m, BLOCK_N=blocks.n, CAUSAL=blocks.is_causal, WIDTH=width),
        warps=max(warps_of_row(width) // 2, 1),  # a block takes few registers here
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


def _tiles(dim: int, width: int, per_block: int, dtype: torch.dtype, target: str) -> _Tiles:
    """For rows of `width` tokens on a GPU, `per_block` of which stand for a key block.

    Chosen so that nothing spills, and two tiles are in flight. Where a row is one short token, query rows are loaded
    once; on sm_90 with so few warps that two programs share a multiprocessor, where one multiplies while the other
    reduces. Longer rows are loaded again for every tile of key rows, which is larger so that they are loaded less
    often, where products take their operands from shared memory.
    """
    channels = dim_tile(dim)
    is_hip = current_backend() == "hip"
    if dtype == torch.float32:
        return _Tiles(64, 64, min(channels, 32), 4, 1 if is_hip else 2)
    n, warps = 32 if target == "sm_120" else 64, 4 if target == "sm_90" else 8
    if width == 1 and channels <= 128 and per_block <= n:
        return _Tiles(128, n, channels, warps, 2 if is_hip else 4)
    n = 256 if target == "sm_90" else 64
    return _Tiles(128, n, min(channels, 64), 8, 2 if is_hip else 4)


@triton.jit
def _gather_rows_kernel(
    x,
    tokens,
    log_count,
    gathered,
    spoiled,
    heads,
    rows,
    padded,
    stride_tb,
    x_strides,
    DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    DIM_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    tile, head = tile_of_head(tl.cdiv(padded, TILE))
    r = tile * TILE + tl.arange(0, TILE)
    d = tl.arange(0, DIM_TILE)
    x += (head // heads) * x_strides[0] + (head % heads) * x_strides[1]
    tokens += (head // heads) * stride_tb
    gathered += (head * padded + tile * TILE) * WIDTH * CHANNELS
    inside = (r[:, None] < rows) & (d[None, :] < DIM)
    exponent = tl.zeros((TILE,), tl.int32)  # the largest of a row; that of NaN and inf has all bits set
    for t in range(WIDTH):
        token = tl.load(tokens + r * WIDTH + t, mask=r < rows, other=0)
        values = tl.load(x + token[:, None] * x_strides[2] + d[None, :] * x_strides[3], mask=inside, other=0.0)
        exponent = tl.maximum(exponent, tl.max(values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7F800000, axis=1))
    is_finite = exponent != 0x7F800000
    for t in range(WIDTH):
        token = tl.load(tokens + r * WIDTH + t, mask=r < rows, other=0)
        values = tl.load(x + token[:, None] * x_strides[2] + d[None, :] * x_strides[3], mask=inside, other=0.0)
        values = tl.where(is_finite[:, None], values, 0.0)
        target = (tl.arange(0, TILE)[:, None] * WIDTH + t) * CHANNELS + d[None, :]
        tl.store(gathered + target, values, mask=(r[:, None] < padded) & (d[None, :] < CHANNELS))
    if spoiled is not None:
        counts = (is_finite == 0) & (r < rows)
        if log_count is not None:
            is_there = tl.load(log_count + head // heads * rows + r, mask=r < rows, other=0.0) > float("-inf")
            counts = counts & is_there
        of_block = tl.max(tl.reshape(counts.to(tl.int32), (TILE // PER_BLOCK, PER_BLOCK)), axis=1)
        blocks = tl.cdiv(rows, PER_BLOCK)
        j = tile * (TILE // PER_BLOCK) + tl.arange(0, TILE // PER_BLOCK)
        tl.store(spoiled + head * blocks + j, of_block.to(tl.int8), mask=j < blocks)


@triton.jit
def _score_kernel(
    q_rows,
    k_rows,
    newest,
    needs,
    log_count,
    notes,
    mass,
    scale,
    last_log_count,
    sizes,
    row,
    stride_keys,
    stride_needs,
    ROW: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PER_M: tl.constexpr,
    PER_N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    REDUCE: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The mass of every block pair in sight of the tiles of query rows that fall to a program."""
    count, heads, group, rows, columns, queries, keys = sizes
    tiles = tl.cdiv(rows, TILE_M)
    blocks = tl.cdiv(keys, BLOCK_N)
    notes += tl.program_id(0).to(tl.int64) * blocks * TILE_M
    for work in range(tl.program_id(0), count, tl.num_programs(0)):
        # Late rows see most under a causal mask: they come first, so that none is left running at the end.
        tile = tiles - 1 - work % tiles
        head = (work // tiles).to(tl.int64)
        b, h = head // heads, head % heads
        q_tile = q_rows + (head * tiles + tile) * TILE_M * ROW
        k_head = k_rows + (b * (heads // group) + h // group) * stride_keys
        r = tile * TILE_M + tl.arange(0, TILE_M)
        query_rows = 0
        if ROW == PART:  # then they are loaded once
            query_rows = tl.load(q_tile + tl.arange(0, TILE_M)[:, None] * ROW + tl.arange(0, PART)[None, :])
        limit = tl.load(newest + r, mask=r < rows, other=0).to(tl.int32) + keys - queries
        in_sight = _blocks_in_sight((tile + 1) * (TILE_M // PER_M), queries, keys, BLOCK_M, BLOCK_N, CAUSAL)
        # Tiles of key rows that all query rows see, and whose rows are whole; then the others.
        plain = columns - 1
        if CAUSAL:
            oldest = tl.load(newest + tile * TILE_M).to(tl.int32) + keys - queries
            plain = tl.minimum(tl.maximum(oldest + 1, 0) // BLOCK_N * PER_N, plain)
        plain = plain // TILE_N * TILE_N
        of_item = log_count
        if log_count is not None:
            of_item = log_count + b * columns
            plain = 0
        of_item_needs = needs + b * stride_needs
        # A thread has sums of its own, of the key rows that it holds: see `_products`.
        SUMS: tl.constexpr = min(TILE_N // PER_N, 4)
        top = tl.full((TILE_M, SUMS), _NONE, tl.float32)  # finite: a row that has seen nothing meets no inf - inf
        total = tl.zeros((TILE_M, SUMS), tl.float32)
        for EDGE in tl.static_range(2):
            for first in range(plain if EDGE else 0, in_sight * PER_N if EDGE else plain, TILE_N):
                products = _products(query_rows, q_tile, k_head, first, row, TILE_M, TILE_N, ROW, PART, PRECISION)
                j = first // PER_N
                factor, is_block = scale, None  # all blocks of a plain tile exist
                if EDGE:
                    c = first + tl.arange(0, TILE_N)
                    products *= scale
                    products = _mask_logits(products, c, columns, of_item, last_log_count, of_item_needs, limit, CAUSAL)
                    factor = 1.0
                    is_block = (j + tl.arange(0, TILE_N // PER_N) < blocks)[None, :]
                top, total = _note(notes + j * TILE_M, products, factor, top, total, is_block, PER_N, REDUCE)

        top_of_row = tl.max(top, axis=1)
        total = tl.sum(total * tl.math.exp2(top - top_of_row[:, None]), axis=1)
        # A total is at least 1/2, that of the top logit; in a row that is none, or sees nothing, probabilities are 0.
        log_sum = tl.where((total > 0.0) & (r < rows), top_of_row + tl.log2(tl.maximum(total, 0.5)), -_NONE)
        tl.debug_barrier()  # notes of all threads are there
        i = tile * (TILE_M // PER_M) + tl.arange(0, TILE_M // PER_M)
        mass_of_rows = mass + (head * tl.cdiv(queries, BLOCK_M) + i[None, :]) * blocks
        for first in range(0, in_sight, CHUNK):
            j = first + tl.arange(0, CHUNK)
            of_pairs = notes + j[:, None] * TILE_M + tl.arange(0, TILE_M)[None, :]
            noted = tl.load(of_pairs, mask=j[:, None] < in_sight, other=_NONE)
            exists = (j[:, None] < in_sight) & (i[None, :] < tl.cdiv(queries, BLOCK_M))
            tl.store(mass_of_rows + j[:, None], _reduce_rows(noted, log_sum, PER_M, REDUCE), mask=exists)
        tl.debug_barrier()  # and all threads have read them


@triton.jit
def _products(
    query_rows,
    q_tile,
    k_head,
    first_key,
    row,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    ROW: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of a tile of query rows, which stand at `q_tile` and may be loaded, and key rows from a first one on.

    Of a product's columns, threads hold pairs in turn, four threads a row. Key rows are multiplied in such an order
    that each thread gets neighbouring ones, and most of the time whole blocks; it loads neighbouring ones, too.
    """
    column, d = tl.arange(0, TILE_N), tl.arange(0, PART)
    of_keys = (column % 8 * (TILE_N // 8) + column // 8)[:, None] * ROW + d[None, :]
    products = tl.zeros((TILE_M, TILE_N), tl.float32)
    if ROW == PART:  # what differs from tile to tile is added last: one address a thread
        keys = tl.load(k_head + of_keys + first_key * ROW)
        products = dot(query_rows, tl.trans(keys), products, PRECISION)
    else:
        of_queries = tl.arange(0, TILE_M)[:, None] * ROW + d[None, :]
        for first in range(0, row, PART):  # a bound that is known would be unrolled, and spill
            queries = tl.load(q_tile + first + of_queries)
            keys = tl.load(k_head + first_key * ROW + first + of_keys)
            products = dot(queries, tl.trans(keys), products, PRECISION)
    by_thread = tl.trans(tl.reshape(products, (TILE_M, TILE_N // 8, 4, 2)), 0, 2, 3, 1)
    return tl.reshape(by_thread, (TILE_M, TILE_N))


@triton.jit
def _mask_logits(logits, c, columns, log_count, last_log_count, needs, limit, CAUSAL: tl.constexpr):
    """Base-2 logits with what short key rows weigh less, and -inf where a query does not see the key row."""
    if log_count is not None:
        bias = tl.load(log_count + c, mask=c < columns, other=float("-inf"))
    else:
        bias = tl.where(c < columns - 1, 0.0, tl.where(c < columns, last_log_count, float("-inf")))
    logits += bias[None, :]
    if CAUSAL:
        need = tl.load(needs + c, mask=c < columns, other=0).to(tl.int32)
        logits = tl.where(need[None, :] <= limit[:, None], logits, float("-inf"))
    return logits


@triton.jit
def _note(notes, products, scale, top, total, is_block, PER_N: tl.constexpr, REDUCE: tl.constexpr):
    """A number for each query row and key block of a tile, in base 2; and the online softmax of its rows.

    The largest logit where pairs are reduced to a maximum. Where to a sum or a norm, the sum of probabilities or of
    their squares, but for the row's log-sum-exp: exponent plus fraction, which takes less than a logarithm. Tops are
    whole numbers there, so that they add to the exponent alone.
    """
    TILE_M: tl.constexpr = products.shape[0]
    SUMS: tl.constexpr = top.shape[1]
    PER_SUM: tl.constexpr = products.shape[1] // SUMS // PER_N
    products = tl.reshape(products, (TILE_M, SUMS, PER_SUM, PER_N))
    largest = tl.max(products, axis=3) * scale
    new_top = tl.max(largest, axis=2)
    new_top = tl.maximum(top, new_top if REDUCE == "max" else tl.ceil(new_top))
    probabilities = tl.math.exp2(products * scale - new_top[:, :, None, None])
    sums = tl.sum(probabilities, axis=3)
    added = tl.sum(sums, axis=2)
    if REDUCE == "max":
        noted = largest
    else:
        power = 2.0 if REDUCE == "norm" else 1.0
        if REDUCE == "norm":
            sums = tl.sum(probabilities * probabilities, axis=3)
        exponent = sums.to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / (1 << 23)) - 127.0
        noted = tl.where(sums > 0.0, exponent + power * new_top[:, :, None], _NONE)
    of_tile = tl.arange(0, SUMS * PER_SUM)[None, :] * TILE_M + tl.arange(0, TILE_M)[:, None]
    tl.store(notes + of_tile, tl.reshape(noted, (TILE_M, SUMS * PER_SUM)), mask=is_block)
    return new_top, total * tl.math.exp2(top - new_top) + added


@triton.jit
def _reduce_rows(noted, log_sum, PER_M: tl.constexpr, REDUCE: tl.constexpr):
    """Notes `[key blocks, query rows]` and log-sum-exps -> a number a pair, `[key blocks, query blocks]`."""
    shape: tl.constexpr = (noted.shape[0], noted.shape[1] // PER_M, PER_M)
    if REDUCE == "max":  # exp2 is monotone: it can wait until there is one number per pair
        return tl.math.exp2(tl.max(tl.reshape(noted - log_sum[None, :], shape), axis=2))
    exponent = tl.floor(noted)
    power = 2.0 if REDUCE == "norm" else 1.0
    sums = (1.0 + (noted - exponent)) * tl.math.exp2(exponent - power * log_sum[None, :])
    total = tl.sum(tl.reshape(sums, shape), axis=2)
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
    spoiled,
    first_keys,
    heads,
    group,
    queries,
    keys,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One row of `mass`, in place: see `scoring._normalise`. What is not in sight was not written before."""
    i, head = tile_of_head(tl.cdiv(queries, BLOCK_M))
    b, h = head // heads, head % heads
    blocks = tl.cdiv(keys, BLOCK_N)
    spoiled += (b * (heads // group) + h // group) * blocks
    mass += tl.program_id(0).to(tl.int64) * blocks
    in_sight = _blocks_in_sight(i + 1, queries, keys, BLOCK_M, BLOCK_N, CAUSAL)
    j = tl.arange(0, WIDTH)
    is_seen = j < in_sight
    visible = in_sight
    if first_keys is not None:
        limit = tl.minimum((i + 1) * BLOCK_M, queries) - 1 + keys - queries if CAUSAL else keys - 1
        is_seen = is_seen & (tl.load(first_keys + b * blocks + j, mask=is_seen, other=0) <= limit)
        visible = tl.sum(is_seen.to(tl.int32))
    x = tl.load(mass + j, mask=is_seen, other=0.0)
    is_finite = (x < float("inf")) & (tl.load(spoiled + j, mask=is_seen, other=0) == 0)
    total = tl.sum(tl.where(is_finite, x, 0.0))
    spoiled_count = tl.sum((is_finite == 0).to(tl.int32))
    whole = spoiled_count + tl.where(total > 0.0, 1.0, (visible - spoiled_count).to(tl.float32) / blocks)
    whole = tl.maximum(whole, 1.0e-30)  # nothing is in sight
    share = tl.where(total > 0.0, x / tl.where(total > 0.0, total, 1.0), 1.0 / blocks)
    share = tl.where(is_finite, share, 1.0) * (1.0 / whole)
    tl.store(mass + j, tl.where(is_seen, share, 0.0), mask=j < blocks)
