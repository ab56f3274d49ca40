"""Exemptions: block pairs that are read in full whatever their importance, and those a causal mask hides."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.blocks import block_count, causal_blocks, check_block_size


def exempt_levels(
    levels: Tensor,
    *,
    block_m: int,
    block_n: int,
    query_tokens: int,
    key_tokens: int,
    prefix_tokens: int = 0,
    keep_first_block: bool = False,
    is_causal: bool = False,
) -> Tensor:
    """Level 1 for the prefix, the first key block and the causal frontier, level 0 for what lies wholly in the future.

    Args:
        levels: int8 `[..., nq, nk]`.
        block_m: tokens per query block.
        block_n: tokens per key block.
        query_tokens: Nq.
        key_tokens: Nk.
        prefix_tokens: tokens at the start, of queries and keys alike, that are read in full: level 1 for key blocks
            that touch them and for all key blocks of query blocks that touch them.
        keep_first_block: level 1 for the first key block, for every query: causal models rest attention on it that
            has nowhere else to go (StreamingLLM, arXiv 2309.17453).
        is_causal: query `i` sees key `j` iff `j <= i + Nk - Nq`. Level 1 for key blocks that this frontier cuts for
            the query block; level 0 for key blocks that none of its queries sees, prefix or not.

    Returns:
        int8 `[..., nq, nk]`, a new tensor.

    Raises:
        ValueError: `levels` has not `ceil(Nq / block_m)` rows of `ceil(Nk / block_n)`, a bad block size, or a negative
            `prefix_tokens`.
    """
    check_levels(levels, block_m, block_n, query_tokens, key_tokens)
    if prefix_tokens < 0:
        raise ValueError(f"prefix_tokens: expected 0 or more, got {prefix_tokens}")
    levels = levels.clone()
    levels[..., : block_count(prefix_tokens, block_n)] = 1
    levels[..., : block_count(prefix_tokens, block_m), :] = 1
    if keep_first_block:
        levels[..., :1] = 1
    if is_causal:
        visible, whole = causal_blocks(query_tokens, key_tokens, block_m, block_n, levels.device)
        levels.masked_fill_(visible & ~whole, 1).masked_fill_(~visible, 0)
    return levels


def serve_first_queries(levels: Tensor, block_m: int, block_n: int, query_tokens: int, key_tokens: int) -> None:
    """Level 1, in place, for the last block that a query sees under a causal mask, if it would read nothing otherwise.

    The frontier cuts a block for every query of a row but the first, which may see whole blocks alone, all at level 0:
    the row's most important block may lie in its future.

    Args:
        levels: int8 `[..., nq, nk]`, as from `exempt_levels`.
        block_m, block_n, query_tokens, key_tokens: as `exempt_levels`'s.
    """
    shift = key_tokens - query_tokens
    if (shift + 1) % min(block_m, block_n):
        return  # no block ends where a row's first query stands
    seen = torch.arange(0, query_tokens, block_m, device=levels.device) + 1 + shift
    rows, last = torch.arange(len(seen), device=levels.device), (seen // block_n - 1).clamp(min=0)
    read = (levels != 0).cumsum(-1)[..., rows, last] > 0
    blind = (seen > 0) & (seen % block_n == 0) & ~read
    levels[..., rows, last] = levels[..., rows, last].masked_fill(blind, 1)


def check_levels(levels: Tensor, block_m: int, block_n: int, query_tokens: int, key_tokens: int) -> None:
    """Raise unless `levels` has one entry per block pair.

    Raises:
        ValueError: naming the shape that was expected.
    """
    check_block_size("block_m", block_m)
    check_block_size("block_n", block_n)
    expected = (block_count(query_tokens, block_m), block_count(key_tokens, block_n))
    if tuple(levels.shape[-2:]) != expected:
        raise ValueError(
            f"levels: expected [..., {expected[0]}, {expected[1]}] for {query_tokens} queries in blocks of {block_m} "
            f"and {key_tokens} keys in blocks of {block_n}, got shape {tuple(levels.shape)}"
        )
