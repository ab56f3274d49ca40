"""Levels by what they cost and what they save: the least expected error for a given density."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.impl import Impl
from psa_triton.levels.budget import allocation
from psa_triton.levels.budget.allocation import share_limits
from psa_triton.levels.budget.ladder import benefit_rates, ladder, step_prices
from psa_triton.levels.budget.limits import row_limits

if TYPE_CHECKING:
    from psa_triton.config import BudgetScope

DOUBT: Final = 0.03
"""Share of the importance that may lie anywhere, since a few queries stand for all; measured."""


def budget_levels(
    importance: Tensor,
    errors: Tensor,
    blocks: Blocks,
    budget: float,
    *,
    keep_first_block: bool,
    scope: BudgetScope,
    impl: Impl,
) -> Tensor:
    """Levels that minimise the sum of `importance^2 * errors` over each row, at a density of at most `budget`.

    A little of the importance (`DOUBT`) is spread evenly first. The most important block of every row that sees
    anything is read in full, so that no row is left with nothing to read.
    Exempt blocks are charged, and left at level 0: `exempt_levels` gives them their levels afterwards.

    Args:
        importance: float32 `[B, Hq, nq, nk]`, 0 to 1, as from `block_importance`.
        errors: float32 `[B, Hq, nk, S + 1]`, as from `expected_errors`.
        blocks: which they are.
        budget: density of the levels, as `read_density` counts it, mean over the queries of a head; exceeded only if
            exempt blocks and the most important ones alone do. A larger one never gives a block a coarser level.
        keep_first_block: see `exempt_levels`.
        scope: among which rows the budget is shared: each has its own, or all `row`s of a `head` or of all heads of a
            `layer` (one batch entry) have one, so that rows of peaked attention leave more to the others.
        impl: `triton` (a GPU kernel) or any other (the same torch code), with the same levels. Rows of more than 4096
            blocks always take the torch code.

    Returns:
        int8 `[B, Hq, nq, nk]`, levels of `ladder(blocks.n)`. The same on every run; nothing waits for the device.
    """
    first = importance.argmax(-1, keepdim=True)  # of equals the first by position
    limits, costs, free = row_limits(budget, blocks, first, keep_first_block=keep_first_block)
    prices = step_prices(blocks, importance.device)
    rates = benefit_rates(errors, prices.mT.unsqueeze(-3)).mT.contiguous()
    weights = torch.lerp(importance, _even(importance, blocks), DOUBT)
    weights = weights.square_().masked_fill_(~free, 0).scatter_(-1, first, 0)
    allocate, prices_above = _implementation(impl, weights.shape[-1])
    limits = share_limits(limits, costs, scope, lambda thresholds: prices_above(thresholds, weights, rates, prices))
    steps = allocate(weights, rates, prices, limits)
    coarsest = ladder(blocks.n)[1]
    levels = (coarsest >> (steps - 1).clamp_(min=0)).masked_fill_(steps == 0, 0).to(torch.int8)
    return levels.scatter_(-1, first, free.expand(levels.shape).gather(-1, first).to(torch.int8))


def _even(importance: Tensor, blocks: Blocks) -> Tensor:
    """Importance that is the same for all blocks that are there."""
    kept = blocks.kept()
    if kept is None:
        return torch.full_like(importance[0, 0], 1 / blocks.columns)
    there = (kept > 0).sum(-1).clamp(min=1)
    return (1 / there.double()).to(importance.dtype)[:, None, None, None].expand_as(importance)


def _implementation(impl: Impl, blocks: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    if impl == "triton":
        from psa_triton.levels.budget import allocation_triton

        if blocks <= allocation_triton.LONGEST_ROW:
            return allocation_triton.allocate, allocation_triton.prices_above
    return allocation.allocate, allocation.prices_above
