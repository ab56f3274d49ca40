"""The pooled levels of keys or values, and the spread of their groups, written in one read of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.gpu import Launch, tile_of_head
from psa_triton.pyramid.spread import SPREAD_LEVELS

_TOKENS = 64
"""Tokens of a program: the coarsest level's group, so that no group is shared between programs."""


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
        ),
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
):
    tile, head = tile_of_head(tl.cdiv(padded, TILE))
    first = tile * TILE
    d = tl.arange(0, DIM_TILE)
    t = first + tl.arange(0, TILE)
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
            squares = _merge_squares(squares, total, sizes, first, tokens, s, SPREAD_COARSEST, TILE, DIM_TILE)
        total = tl.sum(tl.reshape(total, (TILE >> s, 2, DIM_TILE)), axis=1)
        if keep is not None:
            sizes = tl.sum(tl.reshape(sizes, (TILE >> s, 2)), axis=1)
        if s >= FINEST:
            group = (first >> s) + tl.arange(0, TILE >> s)
            if keep is not None:
                count = tl.maximum(sizes, 1).to(tl.float32)
            else:
                count = tl.minimum(tl.maximum(tokens - (group << s), 1), 1 << s).to(tl.float32)
            row = (first_row(s, padded) - left_out + group).to(tl.int64)
            where = (group[:, None] < (padded >> s)) & (d[None, :] < DIM)
            mean = (total / count[:, None]).to(out.dtype.element_ty)
            tl.store(out + row[:, None] * DIM + d[None, :], mean, mask=where)
            if spread is not None:
                tl.store(spread + row, squares / (count * DIM), mask=group < (padded >> s))


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
    DIM_TILE: tl.constexpr,
):
    """Sums of squared distances from the mean, of groups of `2 ** s` from those of their halves and the halves' sums.

    See `pyramid.spread.write_spread`; where the end of the sequence or a key mask cuts a group, its halves weigh by
    their tokens: `sizes` under a mask, else None.
    """
    if s > SPREAD_COARSEST:
        return tl.zeros((TILE >> s,), tl.float32)
    half: tl.constexpr = 1 << (s - 1)
    begin = first + tl.arange(0, TILE >> s) * (2 * half)
    side = tl.arange(0, TILE >> (s - 1))
    if sizes is not None:
        left, right = tl.split(tl.reshape(sizes.to(tl.float32), (TILE >> s, 2)))
        count = tl.maximum(sizes, 1)
    else:
        left = tl.minimum(tl.maximum(tokens - begin, 0), half).to(tl.float32)
        right = tl.minimum(tl.maximum(tokens - begin - half, 0), half).to(tl.float32)
        count = tl.minimum(tl.maximum(tokens - first - side * half, 1), half)
    weight = (1 - 2 * (side & 1)).to(tl.float32) / count  # the left mean, less the right one
    apart = tl.sum(tl.reshape(total * weight[:, None], (TILE >> s, 2, DIM_TILE)), axis=1)
    distance = tl.sum(apart * apart, axis=1) * (left * right / tl.maximum(left + right, 1.0))
    return tl.sum(tl.reshape(squares, (TILE >> s, 2)), axis=1) + distance


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
