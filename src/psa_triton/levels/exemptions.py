"""Exemptions: block pairs that are read in full whatever their importance, and those a causal mask hides."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.blocks import Blocks, block_count
from psa_triton.kept import first_kept


def exempt_levels(levels: Tensor, blocks: Blocks, *, keep_first_block: bool = False) -> Tensor:
    """Level 1 for exempt tokens, the first key block and the causal frontier, level 0 for what lies in the future.

    Args:
        levels: int8 `[..., nq, nk]`; with a key mask `[B, H, nq, nk]`.
        blocks: which they are. Level 1 for key blocks with an exempt key, for all key blocks of query blocks with an
            exempt query, and for those that the causal frontier cuts for the query block; level 0 for key blocks that
            none of its queries sees, or that have no kept key, exempt or not.
        keep_first_block: level 1 for the first key block that has a kept key, for every query: causal models rest
            attention on it that has nowhere else to go (StreamingLLM, arXiv 2309.17453).

    Returns:
        int8 `[..., nq, nk]`, a new tensor.
    """
    levels = levels.clone()
    for start, stop in blocks.exempt_keys:
        levels[..., start // blocks.n : block_count(stop, blocks.n)] = 1
    for start, stop in blocks.exempt_queries:
        levels[..., start // blocks.m : block_count(stop, blocks.m), :] = 1
    kept = blocks.kept()
    if keep_first_block and kept is None:
        levels[..., :1] = 1
    elif keep_first_block and kept is not None:
        first = (kept > 0).int().argmax(-1)
        levels.scatter_(-1, first[:, None, None, None].expand(*levels.shape[:-1], 1), 1)
    if blocks.is_causal or kept is not None:
        visible = blocks.visible(levels.device)
        levels.masked_fill_(visible & ~blocks.whole(levels.device), 1).masked_fill_(~visible, 0)
    return levels


def serve_first_queries(levels: Tensor, blocks: Blocks) -> None:
    """Level 1, in place, for the last block that a query sees under a causal mask, if it would read nothing otherwise.

    The frontier cuts a block for every query of a row but the first, which may see whole blocks alone, all at level 0:
    the row's most important block may lie in its future. What the first sees, all others of the row see.

    Args:
        levels: int8 `[..., nq, nk]`, as from `exempt_levels`.
        blocks: which they are.
    """
    if blocks.key_mask is None and (blocks.shift + 1) % min(blocks.m, blocks.n):
        return  # no block ends where a row's first query stands
    limit = torch.arange(0, blocks.queries, blocks.m, device=levels.device) + blocks.shift
    number = torch.arange(levels.shape[-1], device=levels.device)
    first_key = number * blocks.n
    if blocks.key_mask is not None:
        first_key = first_kept(blocks.key_mask, blocks.n)[:, None, None]
    sees = first_key <= limit[:, None]
    is_blind = sees.any(-1, keepdim=True) & ~(sees & (levels != 0)).any(-1, keepdim=True)
    last = (sees * number).amax(-1, keepdim=True).expand(*levels.shape[:-1], 1)
    levels.scatter_(-1, last, levels.gather(-1, last).masked_fill_(is_blind, 1))
