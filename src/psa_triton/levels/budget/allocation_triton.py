"""Allocation on a GPU: one program a row, in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.gpu import Launch
from psa_triton.levels.budget.allocation import HALVINGS, LARGEST, SMALLEST

LONGEST_ROW = 4096
"""Blocks of the longest row that fits."""
_SHORTEST_ROW = 16


def allocate(weights: Tensor, rates: Tensor, prices: Tensor, limits: Tensor) -> Tensor:
    """What `allocation.allocate` computes, bit for bit, for rows of at most `LONGEST_ROW` blocks."""
    steps = torch.empty(weights.shape, dtype=torch.int8, device=weights.device)
    search = dict(HALVINGS=HALVINGS, SMALLEST=SMALLEST, LARGEST=LARGEST)
    return _of_rows(_allocate_kernel, weights, rates, prices, limits, steps, search)


def prices_above(thresholds: Tensor, weights: Tensor, rates: Tensor, prices: Tensor) -> Tensor:
    """What `allocation.prices_above` computes, bit for bit, for rows of at most `LONGEST_ROW` blocks."""
    totals = torch.empty(thresholds.shape, dtype=torch.int32, device=thresholds.device)
    return _of_rows(_prices_above_kernel, weights, rates, prices, thresholds, totals, {})


def _of_rows(
    kernel: Any, weights: Tensor, rates: Tensor, prices: Tensor, given: Tensor, out: Tensor, constants: dict[str, Any]
) -> Tensor:
    """`out`, filled by one program a row, for which `given` has one number."""
    batch, heads, rows, blocks = weights.shape
    width = max(triton.next_power_of_2(blocks), _SHORTEST_ROW)
    tensors = dict(weights=weights, rates=rates, prices=prices, given=given)
    # Prices of an item, or the same for all.
    stride = prices[0].numel() if len(prices) > 1 else 0
    Launch(
        kernel,
        (rows, batch * heads),
        {name: x.contiguous() for name, x in tensors.items()}
        | dict(out=out, blocks=blocks, heads=heads, stride_prices=stride),
        dict(STEPS=prices.shape[1], WIDTH=width, **constants),
        warps=8 if width > 1024 else 4,
    ).run()
    return out


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
