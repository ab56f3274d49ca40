"""Density: how much of dense attention a level mask reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import SMALLEST_BLOCK, Blocks, block_count, block_lengths
from psa_triton.impl import runs_triton
from psa_triton.kept import last_kept
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
        ValueError: `levels` has not four dimensions or is negative somewhere, `key_mask` has another batch, or no such
            block makes `nk` of its keys.
    """
    if not isinstance(levels, Tensor) or levels.is_floating_point() or levels.is_complex():
        raise TypeError(f"levels: expected an int8 tensor, got {getattr(levels, 'dtype', type(levels).__name__)}")
    if levels.dim() != 4:
        raise ValueError(f"levels: expected [batch, heads, query blocks, key blocks], got {tuple(levels.shape)}")
    # On a GPU the answer would have to be waited for.
    if levels.is_cpu and not torch.compiler.is_compiling() and (levels < 0).any():
        raise ValueError(f"levels: expected 0 or powers of two, got {int(levels.min())}")
    if key_mask is None:
        pairs = max(1, levels.shape[-2] * levels.shape[-1])
        return levels.float().reciprocal_().masked_fill_(levels == 0, 0).sum((-2, -1)) / pairs
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        raise TypeError(f"key_mask: expected a bool tensor or None, got {getattr(key_mask, 'dtype', key_mask)}")
    tokens, blocks = key_mask.shape[-1], levels.shape[-1]
    # A block that is alone may be much larger than its keys; its level, too.
    block_n = COARSEST_LEVEL if blocks == 1 else SMALLEST_BLOCK
    while block_count(tokens, block_n) > max(blocks, 1):
        block_n *= 2
    if key_mask.shape != (len(levels), tokens) or block_count(tokens, block_n) != blocks:
        raise ValueError(
            f"key_mask: expected [B, Nk], batch {len(levels)} and keys that make {blocks} blocks, as in levels "
            f"{tuple(levels.shape)}, got {tuple(key_mask.shape)}"
        )
    if levels.numel() == 0:
        return torch.zeros(levels.shape[:2], device=levels.device)
    queries = levels.shape[-2] * SMALLEST_BLOCK
    return read_density(levels, Blocks(SMALLEST_BLOCK, block_n, queries, tokens, key_mask=key_mask))


def read_density(levels: Tensor, blocks: Blocks) -> Tensor:
    """Groups read over keys visible, mean over the queries: short last groups and masks counted exactly.

    Under a causal mask query `i` sees keys up to `p = i + Nk - Nq` and reads the groups whose last kept token is at
    most `p`. Queries that see no key are left out of the mean; if there are no others the density is 0.

    Args:
        levels: int8 `[B, H, nq, nk]`.
        blocks: which they are.

    Returns:
        float32 `[B, H]`.

    Raises:
        ValueError: `levels` are not those of such blocks.
    """
    if levels.shape[-2:] != (blocks.rows, blocks.columns):
        raise ValueError(
            f"levels: expected [..., {blocks.rows}, {blocks.columns}] for {blocks.queries} queries in blocks of "
            f"{blocks.m} and {blocks.keys} keys in blocks of {blocks.n}, got shape {tuple(levels.shape)}"
        )
    if blocks.key_mask is None and levels.numel() and runs_triton(levels.device):
        from psa_triton.levels import densities_triton

        return densities_triton.read_density(levels, blocks)
    shares, kept = read_shares(levels, blocks)
    return (shares.sum(-1) / (kept > 0).sum(-1).clamp(min=1)).float()


def read_shares(levels: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Groups that each query reads over the keys that it sees, and how many these are.

    Args:
        levels: int8 `[..., nq, nk]`; with a key mask `[B, H, nq, nk]`.
        blocks: which they are.

    Returns:
        float64 `[..., Nq]`, 0 for a query that sees no key; and int64 `[Nq]`, or `[B, 1, Nq]` with a key mask.
    """
    device = levels.device
    queries = torch.arange(blocks.queries, device=device)
    # Every query sees the keys before some position: some whole blocks, then at most one in part.
    end = queries + 1 + blocks.shift if blocks.is_causal else torch.full_like(queries, blocks.keys)
    end = end.clamp(min=0)
    whole_blocks = torch.where(end == blocks.keys, blocks.columns, end // blocks.n)
    cut_block = whole_blocks.clamp(max=blocks.columns - 1)
    rows = queries // blocks.m
    cut_levels = levels[..., rows, cut_block]
    if blocks.key_mask is None:
        lengths = block_lengths(blocks.keys, blocks.n, device).int()
        groups = _groups(levels, lengths, round_up=True)
        cut_groups = _groups(cut_levels, (end - whole_blocks * blocks.n).clamp(min=0), round_up=False)
        kept = end
    else:
        complete = _complete_groups(blocks.key_mask, min(blocks.n, COARSEST_LEVEL))
        ends = (torch.arange(blocks.columns + 1, device=device) * blocks.n).clamp(max=blocks.keys)
        groups = _between(complete, levels, ends[:-1], ends[1:])
        cut_groups = _between(complete, cut_levels, ends[whole_blocks], end)
        kept = F.pad(blocks.key_mask.cumsum(-1), (1, 0))[..., end][:, None]
    groups_before = F.pad(groups.cumsum(-1, dtype=torch.int32), (1, 0))
    read = groups_before[..., rows, whole_blocks] + cut_groups
    return (read.double() / kept.clamp(min=1)).masked_fill_(kept == 0, 0), kept


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
