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
_BLOCKS_PER_WARP = 256
"""Eight a thread, whose benefits, and prices under a key mask, stay in registers."""


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
    is_masked = prices.dim() == 3
    Launch(
        kernel,
        (rows * batch * heads,),
        {name: x.contiguous() for name, x in tensors.items()}
        | dict(out=out, rows=rows, blocks=blocks, heads=heads, stride_prices=prices[0].numel() if is_masked else 0),
        dict(STEPS=prices.shape[-2], WIDTH=width, MASKED=is_masked) | constants,
        warps=max(width // _BLOCKS_PER_WARP, 4),
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
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
    HALVINGS: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    row = _load_row(weights, rates, prices, rows, blocks, heads, stride_prices, STEPS, WIDTH, MASKED)
    limit = tl.load(given + tl.program_id(0))
    low = tl.full((), SMALLEST, tl.int32)
    high = tl.full((), LARGEST, tl.int32)
    for _ in range(HALVINGS):
        middle = low + (high - low) // 2
        fits = _price_above(middle.to(tl.float32, bitcast=True), row, STEPS, WIDTH) <= limit
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, middle)

    threshold = high.to(tl.float32, bitcast=True)
    j = tl.arange(0, WIDTH)
    benefits, price, last, more = row
    taken = tl.zeros((WIDTH,), tl.int32)
    ties = tl.zeros((WIDTH,), tl.int32)
    tied_price = tl.zeros((WIDTH,), tl.int32)
    for s in tl.static_range(STEPS):
        taken += (benefits[s] > threshold).to(tl.int32)
        is_tie = benefits[s] == threshold
        ties += is_tie.to(tl.int32)
        tied_price += tl.where(is_tie, price[s], 0)
        tied_price += tl.where(j == blocks - 1, tl.where(last[s] == threshold, more[s], 0), 0)
    remaining = limit - _price_above(threshold, row, STEPS, WIDTH)
    taken += tl.where(tl.cumsum(tied_price, axis=0) <= remaining, ties, 0)
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
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):
    row = _load_row(weights, rates, prices, rows, blocks, heads, stride_prices, STEPS, WIDTH, MASKED)
    tl.store(out + tl.program_id(0), _price_above(tl.load(given + tl.program_id(0)), row, STEPS, WIDTH))


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
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Benefits of each step of a row's blocks, and prices, by step; what is none has no benefit.

    Without a key mask all blocks but the last have the same prices: one a step, and what the last's adds.
    """
    _, head = tile_of_head(rows)
    weights += tl.program_id(0).to(tl.int64) * blocks
    rates += head * STEPS * blocks
    prices += head // heads * stride_prices
    j = tl.arange(0, WIDTH)
    weight = tl.load(weights + j, mask=j < blocks, other=0.0)
    last_weight = tl.load(weights + blocks - 1)
    benefits: tl.tuple = ()
    price: tl.tuple = ()
    last: tl.tuple = ()
    more: tl.tuple = ()
    for s in tl.static_range(STEPS):
        benefits += (weight * tl.load(rates + s * blocks + j, mask=j < blocks, other=0.0),)
        end = s * blocks + blocks - 1
        if MASKED:
            price += (tl.load(prices + s * blocks + j, mask=j < blocks, other=0),)
            last += (0.0,)
            more += (0,)
        else:
            of_others = tl.load(prices + s * blocks)
            price += (of_others,)
            last += (last_weight * tl.load(rates + end),)
            more += (tl.load(prices + end) - of_others,)
    return benefits, price, last, more


@triton.jit
def _price_above(threshold, row, STEPS: tl.constexpr, WIDTH: tl.constexpr):
    """Price of a row's steps whose benefit exceeds `threshold`."""
    benefits, price, last, more = row
    of_blocks = tl.zeros((WIDTH,), tl.int32)
    of_last = 0
    for s in tl.static_range(STEPS):
        of_blocks += tl.where(benefits[s] > threshold, price[s], 0)
        of_last += tl.where(last[s] > threshold, more[s], 0)
    return tl.sum(of_blocks) + of_last
