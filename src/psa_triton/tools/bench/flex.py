"""PyTorch's FlexAttention as a peer: dense, and block sparsity."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Callable[..., Any]:
    """`flex_attention`, compiled once for all lengths; uncompiled it would write all scores."""
    return torch.compile(flex_attention, dynamic=True)


def most_important(importance: Tensor, density: float) -> Tensor:
    """The most important key blocks of each query block, as many as `density` allows: bool `[B, H, nq, nk]`."""
    kept = max(1, round(importance.shape[-1] * density))
    chosen = importance.topk(kept, dim=-1).indices
    return torch.zeros_like(importance, dtype=torch.bool).scatter_(-1, chosen, True)


def block_mask(chosen: Tensor, *, block_m: int, block_n: int, tokens: int) -> BlockMask:
    """Key blocks that are read in full, and no others.

    Args:
        chosen: which, bool `[B, H, nq, nk]`.
        block_m, block_n: tokens of a query block and of a key block.
        tokens: N, of queries and of keys.
    """
    count, places = listed(chosen)
    return BlockMask.from_kv_blocks(count, places, BLOCK_SIZE=(block_m, block_n), seq_lengths=(tokens, tokens))


def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each row of `chosen [..., nk]` names, and their numbers first; int32."""
    return chosen.sum(-1, dtype=torch.int32), chosen.int().argsort(dim=-1, descending=True, stable=True).int()
