"""`sampled`: softmax of a quarter of the queries over a quarter of the keys, maximum over the block pair."""

from __future__ import annotations

import torch

from psa_triton.importance.rows import BlockGrid, Estimate, KeyRows, QueryRows
from psa_triton.importance.sampling import stratified_tokens

STRATUM = 4
"""One token of this many is looked at, both of queries and of keys."""


def sampled_estimate(grid: BlockGrid, *, generator: torch.Generator | None, device: torch.device) -> Estimate:
    """The paper's estimator for generation (arXiv 2512.04025).

    Args:
        grid: sizes of the estimate.
        generator: draws the tokens at random; without it the choice is fixed.
        device: of the token tables.
    """
    queries = stratified_tokens(grid.query_tokens, STRATUM, pick="last", generator=generator, device=device)
    keys = stratified_tokens(grid.key_tokens, STRATUM, pick="first", generator=generator, device=device)
    return Estimate(
        QueryRows(queries[:, None], grid.block_m // STRATUM),
        KeyRows(keys[:, None], keys, grid.block_n // STRATUM),
        reduce="max",
    )


def sampled_cost(block_m: int, block_n: int) -> float:
    """A sixteenth of QK^T, no PV."""
    return 1 / STRATUM**2 / 2
