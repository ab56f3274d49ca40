"""The pooled levels of keys or values, and the spread of their groups, written in one read of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.gpu import Launch, tile_of_head, warp_size
from psa_triton.pyramid.spread import SPREAD_LEVELS

_TOKENS = 64
"""Tokens of a program: the coarsest level's group, so that no group is shared between programs."""
_LOAD = 16
"""Bytes that a thread loads at a time."""
_OF_THREAD = 8
"""Neighbouring tokens whose channels one thread holds: up to this level it adds them up alone."""


def pooled_rows(tokens: int, block_n: int, finest: int, coarsest: int) -> int:
    """Rows of the levels from `finest` to `coarsest`, each with room for whole blocks."""
    blocks = -(-tokens // block_n)
    return sum(blocks * (block_n >> s) for s in range(_log2(finest), _log2(coarsest) + 1))


class KeptRows(NamedTuple):
    """What a key mask leaves of tokens, and of the rows of all levels, from level 1 on."""

    keep: Tensor
    """int8 `[B, N]`, which tokens are there; contiguous, as the others."""
    bias: Tensor
    """float32 `[B, R]`: log2 of the kept tokens of each row; -inf without one."""
    last: Tensor
    """int32 `[B, R]`: the last kept token of each row; -1 without one."""


def kept_rows(key_mask: Tensor, block_n: int, coarsest: int) -> KeptRows:
    """What `key_mask`, bool `[B, N]`, leaves of tokens and rows; arguments of `pool`."""
    batch, tokens = key_mask.shape
    padded = -(-tokens // block_n) * block_n
    rows = (batch, pooled_rows(tokens, block_n, 1, coarsest))
    bias = torch.empty(rows, dtype=torch.float32, device=key_mask.device)
    kept = KeptRows(key_mask.to(torch.int8).contiguous(), bias, torch.empty_like(bias, dtype=torch.int32))
    Launch(
        _kept_rows_kernel,
        (triton.cdiv(padded, _TOKENS) * batch,),
        dict(keep=kept.keep, bias=bias, last=kept.last, tokens=tokens, padded=padded),
        dict(COARSEST=_log2(coarsest), TILE=_TOKENS),
        warps=1,
    ).run()
    return kept


def pool(
    x: Tensor, block_n: int, coarsest: int, keep: Tensor | None, *, finest: int = 2, with_spread: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Means of the true tokens of every group, all levels one after another, finest first.

    Level `l` has `ceil(N / block_n) * block_n / l` rows, group `g` (tokens `g * l` to `g * l + l - 1`) at row `g`; rows
    without a token are zeros. Sums are in float32.

    Args:
        x: keys or values `[B, H, N, D]`, any strides.
        block_n: tokens of a key block, a power of two.
        coarsest: the last level, a power of two from `finest` to `min(block_n, 64)`.
        keep: int8 `[B, N]`, which tokens are true ones; None if all are.
        finest: the first level.
        with_spread: whether the spread of each row is wanted, as `pyramid.spread.write_spread` defines it.

    Returns:
        `[B, H, R, D]`, contiguous, dtype of `x`, where `R = pooled_rows(N, block_n, finest, coarsest)`; and the spread,
        float32 `[B, H, R]`, or None.
    """
    batch, heads, tokens, dim = x.shape
    padded = -(-tokens // block_n) * block_n
    out = x.new_empty(batch, heads, pooled_rows(tokens, block_n, finest, coarsest), dim)
    spread = x.new_empty(out.shape[:3], dtype=torch.float32) if with_spread else None
    Launch(
        _pool_kernel,
        (triton.cdiv(padded, _TOKENS) * batch * heads,),
        dict(x=x, out=out, spread=spread, keep=keep, heads=heads, tokens=tokens, padded=padded, x_strides=x.stride()),
        dict(
            DIM=dim,
            DIM_TILE=triton.next_power_of_2(dim),
            FINEST=_log2(finest),
            COARSEST=_log2(coarsest),
            SPREAD_COARSEST=_log2(SPREAD_LEVELS[-1]),
            TILE=_TOKENS,
            OF_THREAD=_OF_THREAD,
        ),
        warps=max(_TOKENS // _OF_THREAD * triton.next_power_of_2(dim) * x.element_size() // (warp_size() * _LOAD), 1),
    ).run()
    return out, spread


def _log2(level: int) -> int:
    return level.bit_length() - 1


@triton.jit
def first_row(shift, padded):
    """First row of level `2 ** shift` in a buffer that starts at level 2: `padded / 2 + padded / 4 + ...`."""
    return padded - (padded >> (shift - 1))


@triton.jit
def _pool_kernel(
    x,
    out,
    spread,
    keep,
    heads,
    tokens,
    padded,
    x_strides,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    FINEST: tl.constexpr,
    COARSEST: tl.constexpr,
    SPREAD_COARSEST: tl.constexpr,
    TILE: tl.constexpr,
    OF_THREAD: tl.constexpr,
):
    tile, head = tile_of_head(tl.cdiv(padded, TILE))
    first = tile * TILE
    d = tl.arange(0, DIM_TILE)
    t = first + _groups(0, TILE, OF_THREAD)
    x += (head // heads) * x_strides[0] + (head % heads) * x_strides[1]
    is_there = t < tokens
    sizes = None
    if keep is not None:
        is_there = tl.load(keep + (head // heads) * tokens + t, mask=is_there, other=0) != 0
        sizes = is_there.to(tl.int32)
    inside = is_there[:, None] & (d[None, :] < DIM)
    total = tl.load(x + t[:, None].to(tl.int64) * x_strides[2] + d[None, :] * x_strides[3], mask=inside, other=0.0).to(
        tl.float32
    )

    before: tl.constexpr = FINEST - 1  # a buffer that starts at a coarser level leaves out the rows of the finer ones
    left_out = padded - (padded >> before)
    rows = head * (first_row(COARSEST + 1, padded) - left_out)
    out += rows * DIM
    if spread is not None:
        spread += rows
        squares = tl.zeros((TILE,), tl.float32)
    for s in tl.static_range(1, COARSEST + 1):
        if spread is not None:
            squares = _merge_squares(squares, total, sizes, first, tokens, s, SPREAD_COARSEST, TILE, OF_THREAD)
        total = _add_halves(total, s, TILE, OF_THREAD)
        if keep is not None:
            sizes = _add_halves(sizes, s, TILE, OF_THREAD)
        if s >= FINEST:
            group = (first >> s) + _groups(s, TILE, OF_THREAD)
            if keep is not None:
                count = tl.maximum(sizes, 1).to(tl.float32)
            else:
                count = tl.minimum(tl.maximum(tokens - (group << s), 1), 1 << s).to(tl.float32)
            row = (first_row(s, padded) - left_out + group).to(tl.int64)
            where = (group[:, None] < (padded >> s)) & (d[None, :] < DIM)
            mean = (total * (1.0 / count)[:, None]).to(out.dtype.element_ty)
            tl.store(out + row[:, None] * DIM + d[None, :], mean, mask=where)
            if spread is not None:
                tl.store(spread + row, squares / (count * DIM), mask=group < (padded >> s))


@triton.jit
def _groups(s: tl.constexpr, TILE: tl.constexpr, OF_THREAD: tl.constexpr):
    """Which group of `2 ** s` tokens of a tile stands in which row.

    The first tokens of all runs of `OF_THREAD` come first, then the second ones, and so on: neighbouring rows go to
    different threads, and the tokens of a run to the same.
    """
    RUNS: tl.constexpr = min(TILE // OF_THREAD, TILE >> s)
    row = tl.arange(0, TILE >> s)
    return row % RUNS * ((TILE >> s) // RUNS) + row // RUNS


@triton.jit
def _halves(x, s: tl.constexpr, TILE: tl.constexpr, OF_THREAD: tl.constexpr):
    """Rows of groups of `2 ** (s - 1)` tokens as `[a, 2, b]`, where the groups of `2 ** s` are `[a, b]`."""
    RUNS: tl.constexpr = min(TILE // OF_THREAD, TILE >> s) if (1 << s) <= OF_THREAD else 1
    PAIRS: tl.constexpr = (TILE >> s) // RUNS
    return tl.reshape(x, (PAIRS, 2, x.numel // (2 * PAIRS)))


@triton.jit
def _add_halves(x, s: tl.constexpr, TILE: tl.constexpr, OF_THREAD: tl.constexpr):
    """Sums of groups of `2 ** s` tokens from those of their halves, `[rows]` or `[rows, channels]`."""
    total = tl.sum(_halves(x, s, TILE, OF_THREAD), axis=1)
    if len(x.shape) == 1:
        return tl.reshape(total, (TILE >> s,))
    else:
        return tl.reshape(total, (TILE >> s, x.shape[1]))


@triton.jit
def _merge_squares(
    squares,
    total,
    sizes,
    first,
    tokens,
    s: tl.constexpr,
    SPREAD_COARSEST: tl.constexpr,
    TILE: tl.constexpr,
    OF_THREAD: tl.constexpr,
):
    """Sums of squared distances from the mean, of groups of `2 ** s` from those of their halves and the halves' sums.

    See `pyramid.spread.write_spread`; where the end of the sequence or a key mask cuts a group, its halves weigh by
    their tokens: `sizes` under a mask, else None.
    """
    if s > SPREAD_COARSEST:
        return tl.zeros((TILE >> s,), tl.float32)
    half: tl.constexpr = 1 << (s - 1)
    side = _groups(s - 1, TILE, OF_THREAD)
    if sizes is None:
        sizes = tl.minimum(tl.maximum(tokens - first - side * half, 0), half)
    left, right = tl.split(tl.trans(_halves(sizes.to(tl.float32), s, TILE, OF_THREAD), 0, 2, 1))
    product = tl.reshape(left * right / tl.maximum(left + right, 1.0), (TILE >> s,))
    weight = (1 - 2 * (side & 1)).to(tl.float32) / tl.maximum(sizes, 1)  # the left mean, less the right one
    apart = _add_halves(total * weight[:, None], s, TILE, OF_THREAD)
    return _add_halves(squares, s, TILE, OF_THREAD) + tl.sum(apart * apart, axis=1) * product


@triton.jit
def _kept_rows_kernel(keep, bias, last, tokens, padded, COARSEST: tl.constexpr, TILE: tl.constexpr):
    tile, item = tile_of_head(tl.cdiv(padded, TILE))
    first = tile * TILE
    t = first + tl.arange(0, TILE)
    bias += item * (padded + first_row(COARSEST + 1, padded))
    last += item * (padded + first_row(COARSEST + 1, padded))
    is_there = tl.load(keep + item * tokens + t, mask=t < tokens, other=0) != 0
    count = is_there.to(tl.int32)
    newest = tl.where(is_there, t, -1)
    for s in tl.static_range(0, COARSEST + 1):
        if s > 0:
            count = tl.sum(tl.reshape(count, (TILE >> s, 2)), axis=1)
            newest = tl.max(tl.reshape(newest, (TILE >> s, 2)), axis=1)
        group = (first >> s) + tl.arange(0, TILE >> s)
        # Whole groups exactly, others by the same logarithm as the attention kernels take without a mask.
        log_count = tl.where(count == (1 << s), s * 1.0, tl.log2(tl.maximum(count, 1).to(tl.float32)))
        row = padded + first_row(s, padded) + group if s > 0 else group
        tl.store(bias + row, tl.where(count > 0, log_count, float("-inf")), mask=group < (padded >> s))
        tl.store(last + row, newest, mask=group < (padded >> s))
