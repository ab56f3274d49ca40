"""What each row may spend, so that what is read anyway and all other blocks together keep within a budget."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.blocks import Blocks, block_lengths
from psa_triton.kept import in_groups
from psa_triton.levels.densities import read_shares
from psa_triton.levels.exemptions import exempt_levels

_FREE = 2
"""Any level that exemptions do not give."""
_SLACK = 1e-6
"""Groups by which rounding may bring a limit below a whole number."""


def row_limits(
    budget: float, blocks: Blocks, first: Tensor, *, keep_first_block: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Groups that each row may read of the blocks that are not read in full anyway.

    A row has the budget's share of the keys that it sees, less its exempt blocks and its `first`. Rows where these
    alone cost more (of exempt queries, the first of a causal mask) take from the others, equally, so that the mean
    keeps to the budget.

    Args:
        budget, blocks, keep_first_block: as `budget_levels`'s.
        first: int64 `[B, Hq, nq, 1]`, the block of each row that is read in full whatever it costs.

    Returns:
        The limits, int32 `[B, Hq, nq]`, at least 0; what a group that a row reads adds to the mean density, up to a
        factor, float64 `[nq]`; and which block pairs are not exempt, bool `[nq, nk]`. With a key mask `[B, 1, nq]` and
        `[B, 1, nq, nk]`.
    """
    items = () if blocks.key_mask is None else (len(blocks.key_mask), 1)
    levels = torch.full((*items, blocks.rows, blocks.columns), _FREE, dtype=torch.int8, device=first.device)
    levels = exempt_levels(levels, blocks, keep_first_block=keep_first_block)
    free = levels == _FREE
    shares, visible = read_shares(levels.masked_fill(free, 0), blocks)
    kept = blocks.kept()
    lengths = block_lengths(blocks.keys, blocks.n, first.device) if kept is None else kept[:, None, None]
    seeing = visible > 0
    a_group = (1 / visible.double()).masked_fill(~seeing, 0)
    queries, exempt, a_group = (in_groups(x.double(), blocks.m).sum(-1) for x in (seeing, shares, a_group))
    # A free block is seen whole, by all queries of its row.
    of_first = free.expand(*first.shape[:2], -1, -1).gather(-1, first).squeeze(-1)
    of_first = of_first * lengths.expand(*first.shape[:3], -1).gather(-1, first).squeeze(-1)
    spent = exempt + of_first * a_group
    available = _fill_to_mean(spent, queries, budget) * queries - spent
    limits = (available / a_group.clamp(min=torch.finfo(a_group.dtype).tiny) + _SLACK).floor()
    return limits.clamp(0, blocks.keys).int(), a_group, free


def _fill_to_mean(amounts: Tensor, counts: Tensor, mean: float) -> Tensor:
    """The number such that rows that have less, filled up to it, and all others as they are have the given mean.

    Args:
        amounts: float64 `[..., R]`, total of each row.
        counts: float64 `[..., R]`, how many each row stands for; rows of 0 are left out.
        mean: over all that rows stand for.

    Returns:
        `[..., 1]`: the least over k of what the mean asks of the k lowest rows, were they the ones to be filled. Any
        other choice of rows asks for more. Negative if no filling is as low as `mean`.
    """
    order = (amounts / counts.clamp(min=1)).argsort()
    filled = counts.expand(order.shape).gather(-1, order).cumsum(-1)
    kept = amounts.sum(-1, keepdim=True) - amounts.gather(-1, order).cumsum(-1)
    asked = (mean * counts.sum(-1, keepdim=True) - kept) / filled.clamp(min=1)
    return torch.where(filled > 0, asked, torch.inf).amin(-1, keepdim=True)
