"""Allocation on a GPU: one program a row, in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.gpu import Launch, tile_of_head
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
        (rows * batch * heads,),
        {name: x.contiguous() for name, x in tensors.items()}
        | dict(out=out, rows=rows, blocks=blocks, heads=heads, stride_prices=stride),
        dict(STEPS=prices.shape[1], STEPS_TILE=triton.next_power_of_2(prices.shape[1]), WIDTH=width, MASKED=stride > 0)
        | constants,
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
    rows,
    blocks,
    heads,
    stride_prices,
    STEPS: tl.constexpr,
    STEPS_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
    HALVINGS: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    row = _load_row(weights, rates, prices, rows, blocks, heads, stride_prices, STEPS, STEPS_TILE, WIDTH, MASKED)
    limit = tl.load(given + tl.program_id(0))
    low = tl.full((), SMALLEST, tl.int32)
    high = tl.full((), LARGEST, tl.int32)
    for _ in range(HALVINGS):
        middle = low + (high - low) // 2
        fits = _price_above(middle.to(tl.float32, bitcast=True), row) <= limit
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, middle)

    threshold = high.to(tl.float32, bitcast=True)
    j = tl.arange(0, WIDTH)
    benefits, price, last, more = row
    is_tie = benefits == threshold
    tied_price = tl.sum(tl.where(is_tie, price, 0), axis=0)
    tied_price += tl.where(j == blocks - 1, tl.sum(tl.where(last == threshold, more, 0)), 0)
    remaining = limit - _price_above(threshold, row)
    ties = tl.where(tl.cumsum(tied_price, axis=0) <= remaining, tl.sum(is_tie.to(tl.int32), axis=0), 0)
    taken = tl.sum((benefits > threshold).to(tl.int32), axis=0) + ties
    tl.store(out + tl.program_id(0).to(tl.int64) * blocks + j, taken.to(tl.int8), mask=j < blocks)


@triton.jit
def _prices_above_kernel(
    weights,
    rates,
    prices,
    given,
    out,
    rows,
    blocks,
    heads,
    stride_prices,
    STEPS: tl.constexpr,
    STEPS_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):
    row = _load_row(weights, rates, prices, rows, blocks, heads, stride_prices, STEPS, STEPS_TILE, WIDTH, MASKED)
    tl.store(out + tl.program_id(0), _price_above(tl.load(given + tl.program_id(0)), row))


@triton.jit
def _load_row(
    weights,
    rates,
    prices,
    rows,
    blocks,
    heads,
    stride_prices,
    STEPS: tl.constexpr,
    STEPS_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Benefits of every step of a row's blocks, `[steps, blocks]`, and prices; what is none has no benefit.

    Without a key mask all blocks but the last have the same prices: one column of them, and what the last's add.
    """
    _, head = tile_of_head(rows)
    weights += tl.program_id(0).to(tl.int64) * blocks
    rates += head * STEPS * blocks
    prices += head // heads * stride_prices
    s = tl.arange(0, STEPS_TILE)
    j = tl.arange(0, WIDTH)
    inside = (s[:, None] < STEPS) & (j[None, :] < blocks)
    places = s[:, None] * blocks + j[None, :]
    weight = tl.load(weights + j, mask=j < blocks, other=0.0)
    benefits = weight[None, :] * tl.load(rates + places, mask=inside, other=0.0)
    if MASKED:
        price = tl.load(prices + places, mask=inside, other=0)
        last = s * 0.0
        more = s * 0
    else:
        end = s * blocks + blocks - 1
        price = tl.load(prices + s * blocks, mask=s < STEPS, other=0)
        last = tl.load(weights + blocks - 1) * tl.load(rates + end, mask=s < STEPS, other=0.0)
        more = tl.load(prices + end, mask=s < STEPS, other=0) - price
        price = price[:, None]
    return benefits, price, last, more


@triton.jit
def _price_above(threshold, row):
    """Price of a row's steps whose benefit exceeds `threshold`."""
    benefits, price, last, more = row
    total = tl.sum(tl.sum(tl.where(benefits > threshold, price, 0), axis=0))
    return total + tl.sum(tl.where(last > threshold, more, 0))
