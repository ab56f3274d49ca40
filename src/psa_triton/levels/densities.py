"""Density: how much of dense attention a level mask reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import block_lengths
from psa_triton.levels.exemptions import check_levels


def density(levels: Tensor) -> Tensor:
    """Mean of `1 / level` over all block pairs, 0 for level 0.

    Right for whole blocks without a causal mask; `read_density` counts exactly.

    Args:
        levels: int8 `[B, H, nq, nk]`.

    Returns:
        float32 `[B, H]`; 0 where there is no block pair.

    Raises:
        TypeError: `levels` is no tensor of integers.
        ValueError: it has not four dimensions.
    """
    if not isinstance(levels, Tensor) or levels.is_floating_point() or levels.is_complex():
        raise TypeError(f"levels: expected an int8 tensor, got {getattr(levels, 'dtype', type(levels).__name__)}")
    if levels.dim() != 4:
        raise ValueError(f"levels: expected [batch, heads, query blocks, key blocks], got {tuple(levels.shape)}")
    pairs = max(1, levels.shape[-2] * levels.shape[-1])
    return levels.float().reciprocal_().masked_fill_(levels == 0, 0).sum((-2, -1)) / pairs


def read_density(
    levels: Tensor, *, block_m: int, block_n: int, query_tokens: int, key_tokens: int, is_causal: bool = False
) -> Tensor:
    """Groups read over keys visible, mean over the queries: short last groups and a causal mask counted exactly.

    Under a causal mask query `i` sees keys up to `p = i + Nk - Nq` and reads the groups whose last token is at most
    `p`. Queries that see no key are left out of the mean; if there are no others the density is 0.

    Args:
        levels: int8 `[B, H, nq, nk]`.
        block_m: tokens per query block.
        block_n: tokens per key block.
        query_tokens: Nq.
        key_tokens: Nk.
        is_causal: whether the mask above applies.

    Returns:
        float32 `[B, H]`.

    Raises:
        ValueError: `levels` does not fit the token counts, or a bad block size.
    """
    check_levels(levels, block_m, block_n, query_tokens, key_tokens)
    visible = visible_keys(query_tokens, key_tokens, is_causal, levels.device)
    shares = read_shares(levels, visible, block_m=block_m, block_n=block_n, key_tokens=key_tokens)
    return (shares.sum(-1) / (visible > 0).sum().clamp(min=1)).float()


def visible_keys(query_tokens: int, key_tokens: int, is_causal: bool, device: torch.device) -> Tensor:
    """How many keys each query sees, int64 `[Nq]`."""
    queries = torch.arange(query_tokens, device=device)
    seen = queries + 1 + key_tokens - query_tokens if is_causal else torch.full_like(queries, key_tokens)
    return seen.clamp(min=0)


def read_shares(levels: Tensor, visible: Tensor, *, block_m: int, block_n: int, key_tokens: int) -> Tensor:
    """Groups that each query reads over the keys that it sees; 0 for one that sees none.

    Args:
        levels: int8 `[..., nq, nk]`.
        visible: from `visible_keys`.
        block_m: tokens per query block.
        block_n: tokens per key block.
        key_tokens: Nk.

    Returns:
        float64 `[..., Nq]`.
    """
    # Every query sees some whole blocks, then at most one in part.
    whole_blocks = torch.where(visible == key_tokens, levels.shape[-1], visible // block_n)
    cut_block = whole_blocks.clamp(max=levels.shape[-1] - 1)
    cut_tokens = (visible - whole_blocks * block_n).clamp(min=0)

    divisors = levels.int().clamp(min=1)
    lengths = block_lengths(key_tokens, block_n, levels.device).int()
    groups = ((lengths + divisors - 1) // divisors).masked_fill_(levels == 0, 0)
    groups_before = F.pad(groups.cumsum(-1, dtype=torch.int32), (1, 0))
    rows = torch.arange(len(visible), device=levels.device) // block_m
    cut_groups = (cut_tokens // divisors[..., rows, cut_block]).masked_fill_(levels[..., rows, cut_block] == 0, 0)
    read = groups_before[..., rows, whole_blocks] + cut_groups
    return (read.double() / visible.clamp(min=1)).masked_fill_(visible == 0, 0)
