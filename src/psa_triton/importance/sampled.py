"""`sampled`: softmax of a quarter of the queries over a quarter of the keys, maximum over the block pair."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.importance.sampling import stratified_tokens
from psa_triton.importance.scoring import BlockGrid, KeyRows, QueryRows, score_blocks

STRATUM = 4
"""One token of this many is looked at, both of queries and of keys."""


def sampled_importance(
    q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float, generator: torch.Generator | None
) -> Tensor:
    """The paper's estimator for generation (arXiv 2512.04025); arguments and result as `block_importance`."""
    queries = stratified_tokens(grid.query_tokens, STRATUM, pick="last", generator=generator, device=q.device)
    keys = stratified_tokens(grid.key_tokens, STRATUM, pick="first", generator=generator, device=k.device)
    query_rows = QueryRows(queries[:, None], grid.block_m // STRATUM)
    key_rows = KeyRows(k.index_select(-2, keys), keys, grid.block_n // STRATUM)
    return score_blocks(q, query_rows, key_rows, grid, scale=scale, reduce="max")


def sampled_cost(block_m: int, block_n: int) -> float:
    """A sixteenth of QK^T, no PV."""
    return 1 / STRATUM**2 / 2
