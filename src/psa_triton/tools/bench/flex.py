"""PyTorch's FlexAttention as a peer: dense, and block sparsity of a given density."""

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


def block_sparse_mask(importance: Tensor, *, density: float, block_m: int, block_n: int, tokens: int) -> BlockMask:
    """The most important key blocks of each query block, as many as `density` allows, each read in full.

    Args:
        importance: `[B, H, nq, nk]`.
        density: share of the key blocks.
        block_m, block_n: tokens of a query block and of a key block.
        tokens: N, of queries and of keys.
    """
    blocks = importance.shape[-1]
    kept = max(1, round(blocks * density))
    chosen = importance.topk(kept, dim=-1).indices.sort(dim=-1).values.int()
    indices = torch.zeros(importance.shape, dtype=torch.int32, device=importance.device)
    indices[..., :kept] = chosen
    count = torch.full(importance.shape[:-1], kept, dtype=torch.int32, device=importance.device)
    return BlockMask.from_kv_blocks(count, indices, BLOCK_SIZE=(block_m, block_n), seq_lengths=(tokens, tokens))
