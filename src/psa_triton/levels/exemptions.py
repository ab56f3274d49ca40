"""Exemptions: block pairs that are read in full whatever their importance, and those a causal mask hides."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.blocks import block_count, check_block_size, visible_blocks
from psa_triton.kept import first_kept, kept_count


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
    key_mask: Tensor | None = None,
) -> Tensor:
    """Level 1 for the prefix, the first key block and the causal frontier, level 0 for what lies wholly in the future.

    Args:
        levels: int8 `[..., nq, nk]`; with a key mask `[B, H, nq, nk]`.
        block_m: tokens per query block.
        block_n: tokens per key block.
        query_tokens: Nq.
        key_tokens: Nk.
        prefix_tokens: tokens at the start, of queries and keys alike, that are read in full: level 1 for key blocks
            that touch them and for all key blocks of query blocks that touch them.
        keep_first_block: level 1 for the first key block that has a kept key, for every query: causal models rest
            attention on it that has nowhere else to go (StreamingLLM, arXiv 2309.17453).
        is_causal: query `i` sees key `j` iff `j <= i + Nk - Nq`. Level 1 for key blocks that this frontier cuts for
            the query block; level 0 for key blocks that none of its queries sees, prefix or not.
        key_mask: bool `[B, Nk]`, which keys are there; None if all are. Level 0 for key blocks without one.

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
    if keep_first_block and key_mask is None:
        levels[..., :1] = 1
    elif keep_first_block and key_mask is not None:
        first = (kept_count(key_mask, block_n) > 0).int().argmax(-1)
        levels.scatter_(-1, first[:, None, None, None].expand(*levels.shape[:-1], 1), 1)
    if is_causal or key_mask is not None:
        visible, whole = visible_blocks(
            query_tokens, key_tokens, block_m, block_n, levels.device, is_causal=is_causal, key_mask=key_mask
        )
        levels.masked_fill_(visible & ~whole, 1).masked_fill_(~visible, 0)
    return levels


def serve_first_queries(
    levels: Tensor, block_m: int, block_n: int, query_tokens: int, key_tokens: int, key_mask: Tensor | None = None
) -> None:
    """Level 1, in place, for the last block that a query sees under a causal mask, if it would read nothing otherwise.

    The frontier cuts a block for every query of a row but the first, which may see whole blocks alone, all at level 0:
    the row's most important block may lie in its future. What the first sees, all others of the row see.

    Args:
        levels: int8 `[..., nq, nk]`, as from `exempt_levels`.
        block_m, block_n, query_tokens, key_tokens, key_mask: as `exempt_levels`'s.
    """
    shift = key_tokens - query_tokens
    if key_mask is None and (shift + 1) % min(block_m, block_n):
        return  # no block ends where a row's first query stands
    limit = torch.arange(0, query_tokens, block_m, device=levels.device) + shift
    number = torch.arange(levels.shape[-1], device=levels.device)
    first_key = number * block_n if key_mask is None else first_kept(key_mask, block_n)[:, None, None]
    sees = first_key <= limit[:, None]
    is_blind = sees.any(-1, keepdim=True) & ~(sees & (levels != 0)).any(-1, keepdim=True)
    last = (sees * number).amax(-1, keepdim=True).expand(*levels.shape[:-1], 1)
    levels.scatter_(-1, last, levels.gather(-1, last).masked_fill_(is_blind, 1))


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
