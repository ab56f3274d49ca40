"""`antidiagonal`: sums along strided antidiagonals of QK^T stand for its blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from psa_triton.importance.scoring import BlockGrid, KeyRows, QueryRows, score_blocks

STRIDE = 8
"""Side of the squares whose antidiagonal is summed, tokens."""


def antidiagonal_importance(
    q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float, generator: torch.Generator | None
) -> Tensor:
    """XAttention's estimator (arXiv 2503.16428, algorithm 1), the paper's choice for understanding.

    The logit of a (query group, key group) pair is the mean of `q[7 - t] · k[t]` over its antidiagonal: one product of
    groups laid side by side, the queries reversed. Softmax runs over key groups, and a block pair gets the sum. A
    ragged last group repeats its last token, so that its logit is a mean of as many products as any other, and weighs
    as many tokens as it has. Under a causal mask a query group sees a key group iff its last query sees the first key.

    Arguments and result as `block_importance`; nothing is random, `generator` is not used.
    """
    queries = _groups(grid.query_tokens, q.device).flip(-1)
    keys = _groups(grid.key_tokens, k.device)
    last_length = grid.key_tokens - (len(keys) - 1) * STRIDE
    key_rows = KeyRows(
        k.index_select(-2, keys.flatten()).unflatten(-2, keys.shape).flatten(-2),
        keys[:, 0],
        grid.block_n // STRIDE,
        math.log(last_length / STRIDE),
    )
    query_rows = QueryRows(queries, grid.block_m // STRIDE)
    return score_blocks(q, query_rows, key_rows, grid, scale=scale / STRIDE, reduce="sum")


def antidiagonal_cost(block_m: int, block_n: int) -> float:
    """One product in eight of QK^T, no PV."""
    return 1 / STRIDE / 2


def _groups(tokens: int, device: torch.device) -> Tensor:
    """Tokens of each group of `STRIDE`, int64 `[ceil(tokens / STRIDE), STRIDE]`, the last one repeated to fill."""
    count = -(-tokens // STRIDE)
    return torch.arange(count * STRIDE, device=device).clamp(max=tokens - 1).view(count, STRIDE)
