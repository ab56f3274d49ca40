"""Density: how much of dense attention a level mask reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import SMALLEST_BLOCK, block_count, block_lengths
from psa_triton.kept import kept_before, last_kept
from psa_triton.levels.exemptions import check_levels
from psa_triton.ratios import COARSEST_LEVEL


def density(levels: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Mean of `1 / level` over all block pairs, 0 for level 0: the share of dense attention that is read.

    Right for whole blocks without a causal mask; `read_density` counts exactly. With a key mask the groups that hold a
    kept key are counted over the kept keys, mean over the rows; 0 for an item without any.

    Args:
        levels: int8 `[B, H, nq, nk]`.
        key_mask: bool `[B, Nk]`, which keys are there; None if all are. Blocks are those of a power of two of tokens
            that makes `nk` blocks of `Nk` keys.

    Returns:
        float32 `[B, H]`; 0 where there is no block pair.

    Raises:
        TypeError: `levels` is no tensor of integers, or `key_mask` no bool tensor.
        ValueError: `levels` has not four dimensions, `key_mask` has another batch, or no such block makes `nk` of its
            keys.
    """
    if not isinstance(levels, Tensor) or levels.is_floating_point() or levels.is_complex():
        raise TypeError(f"levels: expected an int8 tensor, got {getattr(levels, 'dtype', type(levels).__name__)}")
    if levels.dim() != 4:
        raise ValueError(f"levels: expected [batch, heads, query blocks, key blocks], got {tuple(levels.shape)}")
    if key_mask is None:
        pairs = max(1, levels.shape[-2] * levels.shape[-1])
        return levels.float().reciprocal_().masked_fill_(levels == 0, 0).sum((-2, -1)) / pairs
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        raise TypeError(f"key_mask: expected a bool tensor or None, got {getattr(key_mask, 'dtype', key_mask)}")
    tokens, blocks = key_mask.shape[-1], levels.shape[-1]
    block_n = SMALLEST_BLOCK
    while block_count(tokens, block_n) > max(blocks, 1):
        block_n *= 2
    if key_mask.shape != (len(levels), tokens) or block_count(tokens, block_n) != blocks:
        raise ValueError(
            f"key_mask: expected [B, Nk], batch {len(levels)} and keys that make {blocks} blocks, as in levels "
            f"{tuple(levels.shape)}, got {tuple(key_mask.shape)}"
        )
    if levels.numel() == 0:
        return torch.zeros(levels.shape[:2], device=levels.device)
    return read_density(
        levels,
        block_m=SMALLEST_BLOCK,
        block_n=block_n,
        query_tokens=levels.shape[-2] * SMALLEST_BLOCK,
        key_tokens=tokens,
        key_mask=key_mask,
    )


def read_density(
    levels: Tensor,
    *,
    block_m: int,
    block_n: int,
    query_tokens: int,
    key_tokens: int,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Groups read over keys visible, mean over the queries: short last groups and masks counted exactly.

    Under a causal mask query `i` sees keys up to `p = i + Nk - Nq` and reads the groups whose last kept token is at
    most `p`. Queries that see no key are left out of the mean; if there are no others the density is 0.

    Args:
        levels: int8 `[B, H, nq, nk]`.
        block_m: tokens per query block.
        block_n: tokens per key block.
        query_tokens: Nq.
        key_tokens: Nk.
        is_causal: whether the mask above applies.
        key_mask: bool `[B, Nk]`, which keys are there; None if all are.

    Returns:
        float32 `[B, H]`.

    Raises:
        ValueError: `levels` does not fit the token counts, or a bad block size.
    """
    check_levels(levels, block_m, block_n, query_tokens, key_tokens)
    visible = visible_keys(query_tokens, key_tokens, is_causal, levels.device)
    shares = read_shares(levels, visible, block_m=block_m, block_n=block_n, key_tokens=key_tokens, key_mask=key_mask)
    kept = visible if key_mask is None else kept_before(key_mask, visible)[:, None]
    return (shares.sum(-1) / (kept > 0).sum(-1).clamp(min=1)).float()


def visible_keys(query_tokens: int, key_tokens: int, is_causal: bool, device: torch.device) -> Tensor:
    """How many keys each query sees, kept or not: those before this position, int64 `[Nq]`."""
    queries = torch.arange(query_tokens, device=device)
    seen = queries + 1 + key_tokens - query_tokens if is_causal else torch.full_like(queries, key_tokens)
    return seen.clamp(min=0)


def read_shares(
    levels: Tensor, visible: Tensor, *, block_m: int, block_n: int, key_tokens: int, key_mask: Tensor | None = None
) -> Tensor:
    """Groups that each query reads over the keys that it sees; 0 for one that sees none.

    Args:
        levels: int8 `[..., nq, nk]`; with a key mask `[B, H, nq, nk]`.
        visible: from `visible_keys`.
        block_m: tokens per query block.
        block_n: tokens per key block.
        key_tokens: Nk.
        key_mask: bool `[B, Nk]`, which keys are there; None if all are.

    Returns:
        float64 `[..., Nq]`.
    """
    # Every query sees some whole blocks, then at most one in part.
    whole_blocks = torch.where(visible == key_tokens, levels.shape[-1], visible // block_n)
    cut_block = whole_blocks.clamp(max=levels.shape[-1] - 1)
    rows = torch.arange(len(visible), device=levels.device) // block_m
    cut_levels = levels[..., rows, cut_block]
    if key_mask is None:
        lengths = block_lengths(key_tokens, block_n, levels.device).int()
        groups = _groups(levels, lengths, round_up=True)
        cut_groups = _groups(cut_levels, (visible - whole_blocks * block_n).clamp(min=0), round_up=False)
        kept = visible
    else:
        complete = _complete_groups(key_mask, min(block_n, COARSEST_LEVEL))
        ends = (torch.arange(levels.shape[-1] + 1, device=levels.device) * block_n).clamp(max=key_tokens)
        groups = _between(complete, levels, ends[:-1], ends[1:])
        cut_groups = _between(complete, cut_levels, ends[whole_blocks], visible)
        kept = kept_before(key_mask, visible)[:, None]
    groups_before = F.pad(groups.cumsum(-1, dtype=torch.int32), (1, 0))
    read = groups_before[..., rows, whole_blocks] + cut_groups
    return (read.double() / kept.clamp(min=1)).masked_fill_(kept == 0, 0)


def _groups(levels: Tensor, tokens: Tensor, *, round_up: bool) -> Tensor:
    """Groups of `levels` in so many tokens; 0 at level 0."""
    divisors = levels.int().clamp(min=1)
    return ((tokens + divisors - 1 if round_up else tokens) // divisors).masked_fill_(levels == 0, 0)


def _complete_groups(key_mask: Tensor, coarsest: int) -> Tensor:
    """Groups of each level whose kept tokens all lie before a position: int32 `[B, levels, Nk + 1]`, level 0 first."""
    batch, tokens = key_mask.shape
    complete = torch.zeros(batch, coarsest.bit_length() + 1, tokens + 1, dtype=torch.int32, device=key_mask.device)
    for step in range(coarsest.bit_length()):
        last = last_kept(key_mask, 1 << step)
        is_there = last < tokens
        # What is not there goes to the first position, which nothing lies before.
        place = torch.where(is_there, last + 1, 0)
        complete[:, step + 1].scatter_add_(-1, place, is_there.int())
    return complete.cumsum(-1, dtype=torch.int32)


def _between(complete: Tensor, levels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Groups of `levels [B, H, ..., X]` that are complete before `end [X]` and not before `start [X]`: int32."""
    # 0, 1, 2, 4, ... -> 0, 1, 2, 3, ...
    step = torch.where(levels > 0, levels.float().log2().round() + 1, 0).long() * complete.shape[-1]
    table = complete.flatten(1)
    of_item = [item.take(steps + end) - item.take(steps + start) for item, steps in zip(table, step, strict=True)]
    return torch.stack(of_item)
