"""`representative`: root of the sum of squared probabilities that a few queries of a block give to groups of keys."""

from __future__ import annotations

import torch

from psa_triton.importance.pooled import pooled_cost, query_and_key_rows
from psa_triton.importance.rows import BlockGrid, Estimate


def representative_estimate(grid: BlockGrid, *, generator: torch.Generator | None, device: torch.device) -> Estimate:
    """What the choice of levels by a budget asks for: errors of groups add up by the squares of their masses.

    Rows and columns are those of `pooled`, and so is the cost; only what is made of a pair's probabilities differs.

    Args:
        grid: sizes of the estimate.
        generator: draws the queries at random; without it the choice is fixed.
        device: of the token tables.
    """
    return Estimate(*query_and_key_rows(grid, generator=generator, device=device), reduce="norm")


representative_cost = pooled_cost
