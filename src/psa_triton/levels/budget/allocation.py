"""The levels of each row that leave the least error at a given cost.

Every key block offers a ladder of levels, coarse to fine. Each step up has a price, the groups that it adds, and a
rate, the error that it avoids per group. Where rates fall from step to step, the best choice at its own total price is
to take every step whose rate, times the row's weight of the block, exceeds one threshold. So a row is one number, found
by halving; where rates would rise, steps are merged first (`ladder.benefit_rates`), which no best choice would take
apart. Rows may share a limit: then all pay up to the same threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from psa_triton.config import BudgetScope


HALVINGS: Final = 31
"""Halvings of a range of floats, numbered by their bits, until two neighbours are left."""
SMALLEST: Final = 0x00800000
"""Bits of the smallest normal float32: no threshold is less, so what avoids no error is not read."""
LARGEST: Final = 0x7F7FFFFF
"""Bits of the largest finite float32: no benefit exceeds it."""
_SHARING: Final = {"head": (-1,), "layer": (-2, -1)}
"""Dimensions of `[B, Hq, nq]` that share a budget."""
_BENEFITS_AT_A_TIME: Final = 1 << 18
"""Benefits that exist at a time, so that they stay in a cache."""


def allocate(weights: Tensor, rates: Tensor, prices: Tensor, limits: Tensor) -> Tensor:
    """How many steps of its ladder each key block climbs in each row.

    A step is taken if `weight * rate` exceeds the row's threshold, the least that keeps within the limit. What remains
    of the limit goes to the steps that meet the threshold exactly, first block first, until one does not fit.

    Args:
        weights: float32 `[B, Hq, nq, nk]`, 0 to 1: how much an error in the block counts.
        rates: float32 `[B, Hq, S, nk]`, finite, from `benefit_rates`.
        prices: int32 `[S, nk]`, the groups that a step adds; `[B, S, nk]` with a key mask.
        limits: int32 `[B, Hq, nq]`, the groups that a row may read.

    Returns:
        int8 `[B, Hq, nq, nk]`, 0 to S. A larger limit never gives a block fewer steps.
    """
    steps = torch.empty(weights.shape, dtype=torch.int8, device=weights.device)
    for *of_rows, part in _parts(rates, prices, weights, limits, steps):
        part.copy_(_allocate_rows(*of_rows))
    return steps


def prices_above(thresholds: Tensor, weights: Tensor, rates: Tensor, prices: Tensor) -> Tensor:
    """Price in each row of the steps whose benefit exceeds its threshold.

    Args:
        thresholds: float32 `[B, Hq, nq]`.
        weights, rates, prices: as `allocate`'s.

    Returns:
        int32 `[B, Hq, nq]`.
    """
    totals = torch.empty(thresholds.shape, dtype=torch.int32, device=thresholds.device)
    for some_rates, some_prices, some_weights, some, part in _parts(rates, prices, weights, thresholds, totals):
        benefits = some_weights[:, :, None] * some_rates[:, None]
        part.copy_(_price_above(some, benefits, some_prices, torch.empty_like(benefits)))
    return totals


def share_limits(limits: Tensor, costs: Tensor, scope: BudgetScope, prices_above: Callable[[Tensor], Tensor]) -> Tensor:
    """Limits that together cost as much, given to the rows that gain most.

    Args:
        limits: int32 `[B, Hq, nq]`, groups that each row may read by itself.
        costs: float64 `[nq]`, what a group read by a row counts.
        scope: `row` leaves the limits as they are; `head` and `layer` share them among these rows.
        prices_above: float32 thresholds `[B, Hq, nq]` -> int32, the groups that each row reads at its threshold.

    Returns:
        int32 `[B, Hq, nq]`.
    """
    if scope == "row":
        return limits
    shared = _SHARING[scope]
    allowed = (limits * costs).sum(shared, keepdim=True)

    def fits(threshold: Tensor) -> Tensor:
        return (prices_above(threshold.expand(limits.shape)) * costs).sum(shared, keepdim=True) <= allowed

    return prices_above(_least_threshold(fits, allowed).expand(limits.shape))


def _least_threshold(fits: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The least float32 for which `fits` is true, each for itself, in the shape of `like`; no waiting for the device.

    Args:
        fits: takes thresholds and returns bool: true from some threshold on, at the latest from the largest float.
        like: of the wanted shape and device.
    """
    low = torch.full_like(like, SMALLEST, dtype=torch.int32)
    high = torch.full_like(like, LARGEST, dtype=torch.int32)
    for _ in range(HALVINGS):
        middle = low + (high - low) // 2
        enough = fits(middle.view(torch.float32))
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, middle)
    return high.view(torch.float32)


def _parts(rates: Tensor, prices: Tensor, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rates and prices `[h, S, nk]` of a few heads with some of their rows, of every tensor of `rows`.

    The first of `rows` has blocks last. Prices are float32: exact below 2^24, and quick to multiply.
    """
    of_heads = rates.flatten(0, 1), prices.float().unsqueeze(-3).expand_as(rates).flatten(0, 1)
    of_rows = [x.flatten(0, 1) for x in rows]
    count = max(1, _BENEFITS_AT_A_TIME // max(1, rates.shape[-2] * rates.shape[-1]))
    heads = max(1, count // max(1, of_rows[0].shape[1]))
    for some_rates, some_prices, *parts in zip(*(x.split(heads) for x in (*of_heads, *of_rows)), strict=True):
        for some_rows in zip(*(part.split(count, dim=1) for part in parts), strict=True):
            yield some_rates, some_prices, *some_rows


def _allocate_rows(rates: Tensor, prices: Tensor, weights: Tensor, limits: Tensor) -> Tensor:
    benefits = weights[:, :, None] * rates[:, None]
    scratch = torch.empty_like(benefits)
    threshold = _least_threshold(lambda t: _price_above(t, benefits, prices, scratch) <= limits, limits)
    remaining = limits - _price_above(threshold, benefits, prices, scratch)
    steps = (benefits > threshold[..., None, None]).sum(-2, dtype=torch.int8)
    tie = benefits == threshold[..., None, None]
    tied_price = torch.mul(tie, prices[:, None], out=scratch).sum(-2)
    return torch.where(tied_price.cumsum(-1) <= remaining[..., None], steps + tie.sum(-2, dtype=torch.int8), steps)


def _price_above(threshold: Tensor, benefits: Tensor, prices: Tensor, scratch: Tensor) -> Tensor:
    """Price of the steps of `benefits [h, nq, S, nk]` above `threshold [h, nq]`: float32 of its shape."""
    return torch.gt(benefits, threshold[..., None, None], out=scratch).mul_(prices[:, None]).sum((-2, -1))
