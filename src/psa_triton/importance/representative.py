"""`representative`: the attention mass that a few queries of each block put on each key block, root mean square."""

from __future__ import annotations

import torch

from psa_triton.importance.pooled import GROUP, grouped_keys, spread_queries
from psa_triton.importance.rows import BlockGrid, Estimate

STRIDE = 8
"""One query of this many stands for its neighbours."""


def representative_estimate(grid: BlockGrid, *, generator: torch.Generator | None, device: torch.device) -> Estimate:
    """What the choice of levels by a budget asks for: an error counts by the square of the mass that it meets.

    Rows and columns are those of `pooled`. A query's mass on a key block is the sum over the block's groups, and the
    queries of a block count by their squares, so that what matters to one of them alone is not averaged away.

    Args:
        grid: sizes of the estimate.
        generator: draws the queries at random; without it the choice is fixed.
        device: of the token tables.
    """
    queries = spread_queries(grid, grid.block_m // STRIDE, generator, device)
    return Estimate(queries, grouped_keys(grid, device), reduce="rms")


def representative_cost(block_m: int, block_n: int) -> float:
    """One query in eight against one key in eight, no PV."""
    return 1 / STRIDE / GROUP / 2
