"""`sampled`: softmax of a quarter of the queries over a quarter of the keys, maximum over the block pair."""

from __future__ import annotations

import torch

from psa_triton.importance.rows import BlockGrid, Estimate, KeyRows, QueryRows
from psa_triton.importance.sampling import stratified_tokens
from psa_triton.kept import kept_count

QUERY_STRATUM = 4
"""One query of this many is looked at."""
KEY_STRATUM = 4
"""One key of this many is looked at."""


def sampled_estimate(grid: BlockGrid, *, generator: torch.Generator | None, device: torch.device) -> Estimate:
    """The paper's estimator for generation (arXiv 2512.04025).

    Args:
        grid: sizes of the estimate.
        generator: draws the tokens at random; without it the choice is fixed.
        device: of the token tables.
    """
    return Estimate(*query_and_key_rows(grid, KEY_STRATUM, generator=generator, device=device), reduce="max")


def sampled_cost(block_m: int, block_n: int) -> float:
    """A sixteenth of QK^T, no PV."""
    return 1 / QUERY_STRATUM / KEY_STRATUM / 2


def query_and_key_rows(
    grid: BlockGrid, key_stratum: int, *, generator: torch.Generator | None, device: torch.device
) -> tuple[QueryRows, KeyRows]:
    """Single tokens: one of every `QUERY_STRATUM` queries and of every `key_stratum` keys, as many as are kept."""
    queries = stratified_tokens(grid.query_tokens, QUERY_STRATUM, pick="last", generator=generator, device=device)
    keys = stratified_tokens(
        grid.key_tokens, key_stratum, pick="first", generator=generator, device=device, key_mask=grid.key_mask
    )
    query_rows = QueryRows(queries[:, None], grid.block_m // QUERY_STRATUM)
    if grid.key_mask is None:
        return query_rows, KeyRows(keys[:, None], keys, grid.block_n // key_stratum)
    is_there = kept_count(grid.key_mask, key_stratum) > 0
    return query_rows, KeyRows(
        keys[..., None],
        needs=keys.masked_fill(~is_there, grid.key_tokens),
        per_block=grid.block_n // key_stratum,
        log_count=is_there.float().log(),
    )
