"""Spread and allocation on a GPU, each in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import block_count
from psa_triton.launch import Launch
from psa_triton.levels.budget.allocation import HALVINGS, LARGEST, SMALLEST

LONGEST_ROW = 4096
"""Blocks of the longest row that fits."""
_SHORTEST_ROW = 16


def group_spread(x: Tensor, *, block_n: int, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `spread.group_spread` computes, up to the order of sums."""
    blocks = block_count(x.shape[2], block_n)
    spread = x.new_empty(*x.shape[:2], blocks, block_n.bit_length() - 1, dtype=torch.float32)
    means = x.new_empty(*x.shape[:2], blocks, x.shape[3], dtype=torch.float32)
    plan_group_spread(x, spread, means, block_n=block_n, key_mask=key_mask).run()
    return spread, means


def plan_group_spread(
    x: Tensor, spread: Tensor, means: Tensor, *, block_n: int, key_mask: Tensor | None = None
) -> Launch:
    """The launch behind `group_spread`."""
    batch, heads, tokens, dim = x.shape
    return Launch(
        _group_spread_kernel,
        (means.shape[2], batch * heads),
        dict(
            x=x,
            spread=spread,
            means=means,
            keep=None if key_mask is None else key_mask.to(torch.int8).contiguous(),
            heads=heads,
            tokens=tokens,
            stride_b=x.stride(0),
            stride_h=x.stride(1),
            stride_n=x.stride(2),
            stride_d=x.stride(3),
        ),
        dict(DIM=dim, DIM_TILE=triton.next_power_of_2(dim), BLOCK=block_n, SCALES=spread.shape[-1]),
        warps=8 if block_n * dim > 8192 else 4,
    )


def allocate(weights: Tensor, rates: Tensor, prices: Tensor, limits: Tensor) -> Tensor:
    """What `allocation.allocate` computes, bit for bit, for rows of at most `LONGEST_ROW` blocks."""
    steps = torch.empty(weights.shape, dtype=torch.int8, device=weights.device)
    plan_allocate(weights, rates, prices, limits, steps).run()
    return steps


def plan_allocate(weights: Tensor, rates: Tensor, prices: Tensor, limits: Tensor, steps: Tensor) -> Launch:
    """The launch behind `allocate`."""
    return _plan_rows(
        _allocate_kernel,
        weights,
        rates,
        prices,
        limits,
        steps,
        constants=dict(HALVINGS=HALVINGS, SMALLEST=SMALLEST, LARGEST=LARGEST),
    )


def prices_above(thresholds: Tensor, weights: Tensor, rates: Tensor, prices: Tensor) -> Tensor:
    """What `allocation.prices_above` computes, bit for bit, for rows of at most `LONGEST_ROW` blocks."""
    totals = torch.empty(thresholds.shape, dtype=torch.int32, device=thresholds.device)
    plan_prices_above(thresholds, weights, rates, prices, totals).run()
    return totals


def plan_prices_above(thresholds: Tensor, weights: Tensor, rates: Tensor, prices: Tensor, totals: Tensor) -> Launch:
    """The launch behind `prices_above`."""
    return _plan_rows(_prices_above_kernel, weights, rates, prices, thresholds, totals, constants={})


def _plan_rows(
    kernel: Any, weights: Tensor, rates: Tensor, prices: Tensor, given: Tensor, out: Tensor, constants: dict[str, Any]
) -> Launch:
    """One program a row, for which `given` has one number."""
    batch, heads, rows, blocks = weights.shape
    width = max(triton.next_power_of_2(blocks), _SHORTEST_ROW)
    tensors = dict(weights=weights, rates=rates, prices=prices, given=given)
    # Prices of an item, or the same for all.
    stride = prices[0].numel() if len(prices) > 1 else 0
    return Launch(
        kernel,
        (rows, batch * heads),
        {name: x.contiguous() for name, x in tensors.items()}
        | dict(out=out, blocks=blocks, heads=heads, stride_prices=stride),
        dict(STEPS=prices.shape[1], WIDTH=width, **constants),
        warps=8 if width > 1024 else 4,
    )


@triton.jit
def _group_spread_kernel(
    x,
    spread,
    means,
    keep,
    heads,
    tokens,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALES: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    block = head * tl.num_programs(0) + tl.program_id(0)
    d = tl.arange(0, DIM_TILE)
    t = tl.arange(0, BLOCK)
    length = tl.minimum(tokens - tl.program_id(0) * BLOCK, BLOCK)
    x += (head // heads) * stride_b + (head % heads) * stride_h + tl.program_id(0).to(tl.int64) * BLOCK * stride_n
    is_there = t < length
    if keep is not None:
        keep += (head // heads) * tokens + tl.program_id(0).to(tl.int64) * BLOCK
        is_there = tl.load(keep + t, mask=is_there, other=0) != 0
        length = tl.maximum(tl.sum(is_there.to(tl.int32)), 1)
        kept = is_there.to(tl.float32)
    inside = is_there[:, None] & (d[None, :] < DIM)
    mean = tl.load(x + t[:, None] * stride_n + d[None, :] * stride_d, mask=inside, other=0.0).to(tl.float32)
    total = 0.0
    for s in tl.static_range(1, SCALES + 1):
        group = tl.arange(0, BLOCK >> s)
        if keep is not None:
            first_count, second_count = tl.split(tl.reshape(kept, (BLOCK >> s, 2)))
            count = first_count + second_count
            kept = count
        else:
            first_count = tl.minimum(tl.maximum(length - (group << s), 0), 1 << (s - 1)).to(tl.float32)
            count = tl.minimum(tl.maximum(length - (group << s), 0), 1 << s).to(tl.float32)
        share = (count - first_count) / tl.maximum(count, 1.0)
        halves = tl.permute(tl.reshape(mean, (BLOCK >> s, 2, DIM_TILE)), (0, 2, 1))
        first, second = tl.split(halves)
        apart = second - first
        total += tl.sum(first_count * share * tl.sum(apart * apart, axis=1))
        mean = first + apart * share[:, None]
        tl.store(spread + block * SCALES + s - 1, total / length)
    tl.store(means + block * DIM + d, tl.reshape(mean, (DIM_TILE,)), mask=d < DIM)


@triton.jit
def _allocate_kernel(
    weights,
    rates,
    prices,
    given,
    out,
    blocks,
    heads,
    stride_prices,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALVINGS: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    row = head * tl.num_programs(0) + tl.program_id(0)
    j = tl.arange(0, WIDTH)
    weight = tl.load(weights + row * blocks + j, mask=j < blocks, other=0.0)
    rates += head * STEPS * blocks
    prices += head // heads * stride_prices
    limit = tl.load(given + row)

    low = tl.full((), SMALLEST, tl.int32)
    high = tl.full((), LARGEST, tl.int32)
    for _ in range(HALVINGS):
        middle = low + (high - low) // 2
        fits = _price_above(middle.to(tl.float32, bitcast=True), weight, rates, prices, blocks, STEPS) <= limit
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, middle)

    threshold = high.to(tl.float32, bitcast=True)
    taken = tl.zeros((WIDTH,), tl.int32)
    ties = tl.zeros((WIDTH,), tl.int32)
    tied_price = tl.zeros((WIDTH,), tl.int32)
    for s in range(STEPS):
        benefit = weight * tl.load(rates + s * blocks + j, mask=j < blocks, other=0.0)
        price = tl.load(prices + s * blocks + j, mask=j < blocks, other=0)
        taken += (benefit > threshold).to(tl.int32)
        ties += (benefit == threshold).to(tl.int32)
        tied_price += tl.where(benefit == threshold, price, 0)
    remaining = limit - _price_above(threshold, weight, rates, prices, blocks, STEPS)
    taken += tl.where(tl.cumsum(tied_price, axis=0) <= remaining, ties, 0)
    tl.store(out + row * blocks + j, taken.to(tl.int8), mask=j < blocks)


@triton.jit
def _prices_above_kernel(
    weights, rates, prices, given, out, blocks, heads, stride_prices, STEPS: tl.constexpr, WIDTH: tl.constexpr
):
    head = tl.program_id(1).to(tl.int64)
    row = head * tl.num_programs(0) + tl.program_id(0)
    j = tl.arange(0, WIDTH)
    weight = tl.load(weights + row * blocks + j, mask=j < blocks, other=0.0)
    prices += head // heads * stride_prices
    total = _price_above(tl.load(given + row), weight, rates + head * STEPS * blocks, prices, blocks, STEPS)
    tl.store(out + row, total)


@triton.jit
def _price_above(threshold, weight, rates, prices, blocks, STEPS: tl.constexpr):
    """Price of a row's steps whose benefit exceeds `threshold`; blocks past the end weigh nothing."""
    j = tl.arange(0, weight.shape[0])
    total = tl.zeros(weight.shape, tl.int32)
    for s in range(STEPS):
        benefit = weight * tl.load(rates + s * blocks + j, mask=j < blocks, other=0.0)
        total += tl.where(benefit > threshold, tl.load(prices + s * blocks + j, mask=j < blocks, other=0), 0)
    return tl.sum(total)
