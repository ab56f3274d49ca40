"""The levels that a budget chooses among, what each step between them costs, and what it saves."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import Blocks, block_lengths
from psa_triton.kept import in_groups, kept_count
from psa_triton.ratios import COARSEST_LEVEL

_CHEAP: Final = 1e-3
"""What a step that adds no group, as in a short last block, counts as."""


def ladder(block_n: int) -> tuple[int, ...]:
    """Levels from coarse to fine: 0, the whole block (64 tokens at most), ..., 8, 4, 2, 1."""
    coarsest = min(block_n, COARSEST_LEVEL)
    return (0, *(coarsest >> step for step in range(coarsest.bit_length())))


def step_prices(blocks: Blocks, device: torch.device) -> Tensor:
    """Groups that each step up the ladder adds for each key block: int32 `[S, nk]`.

    With a key mask groups that hold a kept key: `[B, S, nk]`.
    """
    steps = ladder(blocks.n)[1:]
    if blocks.key_mask is not None:
        # Which groups of 1, 2, 4, ... tokens are there, then how many of them in each block.
        is_there = {level: in_groups(blocks.key_mask, level).any(-1) for level in steps}
        groups = [kept_count(found, blocks.n // level).int() for level, found in is_there.items()]
    else:
        lengths = block_lengths(blocks.keys, blocks.n, device).int()
        groups = [(lengths + level - 1) // level for level in steps]
    return torch.stack([torch.zeros_like(groups[0]), *groups], dim=-2).diff(dim=-2)


def benefit_rates(errors: Tensor, prices: Tensor) -> Tensor:
    """Error avoided per price by each step of a ladder, steps merged until it falls from step to step.

    These are the slopes of the lower convex hull of the points (price so far, error), by the min-max formula of
    isotonic regression: the least, over the levels at which a merged step may start, of the greatest mean slope from
    there over the step.

    Args:
        errors: float32 `[..., S + 1]`, finite and at least 0, coarsest level first.
        prices: int32 `[..., S]` of the steps, at least 0, broadcast with `errors`.

    Returns:
        float32 `[..., S]`, at least 0, not rising. Steps without a price count as very cheap.
    """
    totals = F.pad(prices.cumsum(-1), (1, 0)).float()
    # Mean slopes from every level (second to last dimension) to every finer one (last dimension).
    slopes = (errors[..., :, None] - errors[..., None, :]) / (totals[..., None, :] - totals[..., :, None]).clamp(
        min=_CHEAP
    )
    not_finer = torch.ones(slopes.shape[-2:], dtype=torch.bool, device=errors.device).tril()
    to_level_or_finer = slopes.masked_fill_(not_finer, -torch.inf).flip(-1).cummax(-1).values.flip(-1)
    return to_level_or_finer.masked_fill_(not_finer, torch.inf).amin(-2)[..., 1:].clamp_(min=0)
