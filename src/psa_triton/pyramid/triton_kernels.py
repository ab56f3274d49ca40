"""The pooled levels of keys or values, and the spread of their groups, written in one read of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.launch import Launch
from psa_triton.pyramid.spread import SPREAD_LEVELS

_TOKENS = 64
"""Tokens of a program: the coarsest level's group, so that no group is shared between programs."""


def pooled_rows(tokens: int, block_n: int, finest: int, coarsest: int) -> int:
    """Rows of the levels from `finest` to `coarsest`, each with room for whole blocks."""
    blocks = -(-tokens // block_n)
    return sum(blocks * (block_n >> s) for s in range(_log2(finest), _log2(coarsest) + 1))


def pool(x: Tensor, *, block_n: int, coarsest: int, finest: int = 2) -> Tensor:
    """Means of the true tokens of every group, all levels one after another, finest first.

    Level `l` has `ceil(N / block_n) * block_n / l` rows, group `g` (tokens `g * l` to `g * l + l - 1`) at row `g`; rows
    without a token are zeros. Sums are in float32.

    Args:
        x: keys or values `[B, H, N, D]`, any strides.
        block_n: tokens of a key block, a power of two.
        coarsest: the last level, a power of two from `finest` to `min(block_n, 64)`.
        finest: the first level.

    Returns:
        `[B, H, pooled_rows(N, block_n, finest, coarsest), D]`, contiguous, dtype of `x`.
    """
    out = x.new_empty(*x.shape[:2], pooled_rows(x.shape[2], block_n, finest, coarsest), x.shape[3])
    plan_pool(x, out, block_n=block_n, finest=finest, coarsest=coarsest).run()
    return out


def pool_with_spread(x: Tensor, *, block_n: int, coarsest: int) -> tuple[Tensor, Tensor]:
    """`pool` from level 2 on, with the spread of each row as `pyramid.spread.write_spread` defines it.

    Returns:
        The means, and the spread of the same rows, float32 `[B, H, R]`.
    """
    shape = (*x.shape[:2], pooled_rows(x.shape[2], block_n, 2, coarsest))
    out, spread = x.new_empty(*shape, x.shape[3]), x.new_empty(shape, dtype=torch.float32)
    plan_pool(x, out, spread, block_n=block_n, finest=2, coarsest=coarsest).run()
    return out, spread


def plan_pool(
    x: Tensor, out: Tensor, spread: Tensor | None = None, *, block_n: int, finest: int, coarsest: int
) -> Launch:
    """The launch behind `pool` and `pool_with_spread`."""
    batch, heads, tokens, dim = x.shape
    padded = -(-tokens // block_n) * block_n
    return Launch(
        _pool_kernel,
        (triton.cdiv(padded, _TOKENS), batch * heads),
        dict(
            x=x,
            out=out,
            spread=spread,
            heads=heads,
            tokens=tokens,
            padded=padded,
            stride_b=x.stride(0),
            stride_h=x.stride(1),
            stride_n=x.stride(2),
            stride_d=x.stride(3),
        ),
        dict(
            DIM=dim,
            DIM_TILE=triton.next_power_of_2(dim),
            FINEST=_log2(finest),
            COARSEST=_log2(coarsest),
            SPREAD_COARSEST=_log2(SPREAD_LEVELS[-1]),
            TILE=_TOKENS,
        ),
        warps=4,
    )


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
    heads,
    tokens,
    padded,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    FINEST: tl.constexpr,
    COARSEST: tl.constexpr,
    SPREAD_COARSEST: tl.constexpr,
    TILE: tl.constexpr,
):
    first = tl.program_id(0) * TILE
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, DIM_TILE)
    t = first + tl.arange(0, TILE)
    x += (head // heads) * stride_b + (head % heads) * stride_h
    inside = (t[:, None] < tokens) & (d[None, :] < DIM)
    total = tl.load(x + t[:, None].to(tl.int64) * stride_n + d[None, :] * stride_d, mask=inside, other=0.0).to(
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
            squares = _merge_squares(squares, total, first, tokens, s, SPREAD_COARSEST, TILE, DIM_TILE)
        total = tl.sum(tl.reshape(total, (TILE >> s, 2, DIM_TILE)), axis=1)
        if s >= FINEST:
            group = (first >> s) + tl.arange(0, TILE >> s)
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
    first,
    tokens,
    s: tl.constexpr,
    SPREAD_COARSEST: tl.constexpr,
    TILE: tl.constexpr,
    DIM_TILE: tl.constexpr,
):
    """Sums of squared distances from the mean, of groups of `2 ** s` from those of their halves and the halves' sums.

    See `pyramid.spread.write_spread`; where the end of the sequence cuts a group, its halves weigh by their tokens.
    """
    if s > SPREAD_COARSEST:
        return tl.zeros((TILE >> s,), tl.float32)
    half: tl.constexpr = 1 << (s - 1)
    begin = first + tl.arange(0, TILE >> s) * (2 * half)
    left = tl.minimum(tl.maximum(tokens - begin, 0), half).to(tl.float32)
    right = tl.minimum(tl.maximum(tokens - begin - half, 0), half).to(tl.float32)
    side = tl.arange(0, TILE >> (s - 1))
    count = tl.minimum(tl.maximum(tokens - first - side * half, 1), half)
    weight = (1 - 2 * (side & 1)).to(tl.float32) / count  # the left mean, less the right one
    apart = tl.sum(tl.reshape(total * weight[:, None], (TILE >> s, 2, DIM_TILE)), axis=1)
    distance = tl.sum(apart * apart, axis=1) * (left * right / tl.maximum(left + right, 1.0))
    return tl.sum(tl.reshape(squares, (TILE >> s, 2)), axis=1) + distance
