"""Block arithmetic: how many blocks, how long each is, and which (query block, key block) pairs masks cut."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.inputs import as_int
from psa_triton.kept import first_kept, last_kept

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


def visible_blocks(
    query_tokens: int,
    key_tokens: int,
    block_m: int,
    block_n: int,
    device: torch.device,
    *,
    is_causal: bool,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which block pairs a bottom-right aligned causal mask and a key mask leave visible.

    Under the causal mask query `i` sees key `j` iff `j <= i + key_tokens - query_tokens`.

    Args:
        query_tokens, key_tokens: Nq and Nk.
        block_m, block_n: tokens of a query block and of a key block.
        device: of the result.
        is_causal: whether there is a causal mask.
        key_mask: bool `[B, Nk]`, which keys are there; None if all are.

    Returns:
        `visible` and `whole`, bool `[nq, nk]`, or `[B, 1, nq, nk]` with a key mask: some query of the block sees some
        key of the block, and every query sees every key that is there. The causal frontier cuts the pairs that are
        visible but not whole.
    """
    first_query = torch.arange(0, query_tokens, block_m, device=device)
    last_query = (first_query + block_m).clamp(max=query_tokens) - 1
    if is_causal:
        first_limit, last_limit = (x + key_tokens - query_tokens for x in (first_query, last_query))
    else:
        first_limit = last_limit = torch.full_like(first_query, key_tokens - 1)
    if key_mask is None:
        first_key = torch.arange(0, key_tokens, block_n, device=device)
        last_key = (first_key + block_n).clamp(max=key_tokens) - 1
    else:
        first_key, last_key = (of(key_mask, block_n)[:, None, None] for of in (first_kept, last_kept))
    return first_key <= last_limit[:, None], last_key <= first_limit[:, None]
