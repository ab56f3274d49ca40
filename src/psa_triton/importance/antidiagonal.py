"""`antidiagonal`: sums along strided antidiagonals of QK^T stand for its blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from psa_triton.importance.rows import BlockGrid, Estimate, KeyRows, QueryRows, kept_needs, log_shares
from psa_triton.kept import nearest_kept

STRIDE = 8
"""Side of the squares whose antidiagonal is summed, tokens."""


def antidiagonal_estimate(grid: BlockGrid, *, generator: torch.Generator | None, device: torch.device) -> Estimate:
    """XAttention's estimator (arXiv 2503.16428, algorithm 1), the paper's choice for understanding.

    The logit of a (query group, key group) pair is the mean of `q[7 - t] · k[t]` over its antidiagonal: one product of
    groups laid side by side, the queries reversed. Softmax runs over key groups, and a block pair gets the sum. A
    ragged last group repeats its last token, so that its logit is a mean of as many products as any other, and weighs
    as many tokens as it has; so does a group with keys left out, where the kept key before one is repeated in its
    place, or the first where there is none. Under a causal mask a query group sees a key group iff its last query sees
    the first (kept) key.

    Args:
        grid: sizes of the estimate.
        generator: not used, nothing is random.
        device: of the token tables.
    """
    queries = _groups(grid.query_tokens, device).flip(-1)
    query_rows = QueryRows(queries, grid.block_m // STRIDE)
    if grid.key_mask is not None:
        key_rows = KeyRows(
            nearest_kept(grid.key_mask, STRIDE),
            needs=kept_needs(grid, STRIDE, pick="first"),
            per_block=grid.block_n // STRIDE,
            log_count=log_shares(grid, STRIDE),
        )
        return Estimate(query_rows, key_rows, reduce="sum")
    keys = _groups(grid.key_tokens, device)
    last_length = grid.key_tokens - (len(keys) - 1) * STRIDE
    return Estimate(
        query_rows,
        KeyRows(keys, keys[:, 0], grid.block_n // STRIDE, last_log_count=math.log(last_length / STRIDE)),
        reduce="sum",
    )


def antidiagonal_cost(block_m: int, block_n: int) -> float:
    """One product in eight of QK^T, no PV."""
    return 1 / STRIDE / 2


def _groups(tokens: int, device: torch.device) -> Tensor:
    """Tokens of each group of `STRIDE`, int64 `[ceil(tokens / STRIDE), STRIDE]`, the last one repeated to fill."""
    count = -(-tokens // STRIDE)
    return torch.arange(count * STRIDE, device=device).clamp(max=tokens - 1).view(count, STRIDE)
