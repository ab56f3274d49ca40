"""Block arithmetic: how many blocks, how long each is, and which (query block, key block) pairs a causal mask cuts."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.inputs import as_int

SMALLEST_BLOCK = 8


def check_block_size(name: str, size: int) -> int:
    """`size`, the argument called `name`, as an int that is a power of two of at least 8 tokens.

    Raises:
        TypeError: it is no integer.
        ValueError: it is no power of two, or too small.
    """
    size = as_int(name, size)
    if size < SMALLEST_BLOCK or size & (size - 1):
        raise ValueError(f"{name}: expected a power of two of at least {SMALLEST_BLOCK} tokens, got {size}")
    return size


def block_count(tokens: int, size: int) -> int:
    """Number of blocks of `size` that `tokens` fill, the last one possibly in part."""
    return -(-tokens // size)


def block_lengths(tokens: int, size: int, device: torch.device) -> Tensor:
    """True tokens of each block, int64 `[block_count(tokens, size)]`: `size`, but for a ragged last block."""
    starts = torch.arange(0, tokens, size, device=device)
    return (tokens - starts).clamp(max=size)


def causal_blocks(
    query_tokens: int, key_tokens: int, block_m: int, block_n: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which block pairs a bottom-right aligned causal mask leaves visible.

    Query `i` sees key `j` iff `j <= i + key_tokens - query_tokens`.

    Returns:
        `visible` and `whole`, bool `[nq, nk]`: some query of the block sees some key of the block, and every query
        sees every key. The causal frontier cuts the pairs that are visible but not whole.
    """
    shift = key_tokens - query_tokens
    first_query = torch.arange(0, query_tokens, block_m, device=device)
    last_query = (first_query + block_m).clamp(max=query_tokens) - 1
    first_key = torch.arange(0, key_tokens, block_n, device=device)
    last_key = (first_key + block_n).clamp(max=key_tokens) - 1
    visible = first_key <= last_query[:, None] + shift
    whole = last_key <= first_query[:, None] + shift
    return visible, whole
