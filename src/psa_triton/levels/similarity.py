"""Similarity cap: key blocks whose neighbours are unlike are not pooled further than they allow."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import block_lengths
from psa_triton.impl import Impl, resolve_impl
from psa_triton.kept import in_groups

if TYPE_CHECKING:
    from psa_triton.config import SimThresholds

_BLOCKS_AT_A_TIME = 64
"""Float32 copies of the keys exist for this many key blocks at a time."""


def similarity_caps(
    k: Tensor, n: int, thresholds: SimThresholds, key_mask: Tensor | None = None, *, impl: Impl = "auto"
) -> Tensor:
    """Coarsest level at which each key block may be read.

    A block passes level 2, 4, 8 if the mean cosine similarity of its pairs of true tokens 1, 3, 7 apart reaches
    `thresholds.x2`, `x4`, `x8`. The coarsest level that passes wins, also where a finer one fails. A block too short
    for pairs so far apart does not pass that level; a block with a non-finite key passes none.

    Args:
        k: `[B, Hkv, Nk, D]`, keys in the order in which they are pooled.
        n: tokens per key block.
        thresholds: least mean similarities.
        key_mask: bool `[B, Nk]`, which keys are there; None if all are. A pair needs both of its own.
        impl: `triton` (a GPU kernel), any other (the same torch code), or `auto`; see `resolve_impl`.

    Returns:
        int8 `[B, Hkv, ceil(Nk / n)]` of 1, 2, 4, 8. Levels coarser than 8 are never allowed.
    """
    if resolve_impl(impl, k) == "triton":
        from psa_triton.levels import similarity_triton

        return similarity_triton.similarity_caps(k, n, thresholds, key_mask)
    size = _BLOCKS_AT_A_TIME * n
    masks = repeat(None) if key_mask is None else key_mask.split(size, dim=-1)
    pieces = zip(k.split(size, dim=-2), masks, strict=False)
    return torch.cat([_caps(piece, n, thresholds, keep) for piece, keep in pieces], dim=-1)


def cap_levels(levels: Tensor, caps: Tensor) -> Tensor:
    """`min(level, cap)` for levels `[B, Hq, nq, nk]` and caps of their key heads `[B, Hkv, nk]`; level 0 stays 0."""
    return torch.minimum(levels, caps.repeat_interleave(levels.shape[1] // caps.shape[1], dim=1)[:, :, None])


def _caps(k: Tensor, block_n: int, thresholds: SimThresholds, keep: Tensor | None) -> Tensor:
    lengths = block_lengths(k.shape[-2], block_n, k.device)
    missing = len(lengths) * block_n - k.shape[-2]
    k = k.float() if keep is None else k.float().masked_fill(~keep[:, None, :, None], 0)
    directions = F.pad(F.normalize(k, dim=-1), (0, 0, 0, missing)).unflatten(-2, (len(lengths), block_n))
    caps = torch.ones(directions.shape[:-2], dtype=torch.int8, device=k.device)
    for level, distance, threshold in ((2, 1, thresholds.x2), (4, 3, thresholds.x4), (8, 7, thresholds.x8)):
        pairs = (lengths - distance).clamp(min=0) if keep is None else _kept_pairs(keep, block_n, distance)
        # Padding rows are zeros, so pairs with one add nothing to the sum.
        total = (directions[..., :-distance, :] * directions[..., distance:, :]).sum((-2, -1))
        caps.masked_fill_((total >= threshold * pairs) & (pairs > 0), level)
    return caps.masked_fill_(~directions.sum((-2, -1)).isfinite(), 1)


def _kept_pairs(keep: Tensor, block_n: int, distance: int) -> Tensor:
    """Pairs of kept tokens so far apart in each block: int64 `[B, 1, blocks]`."""
    kept = in_groups(keep, block_n)
    return (kept[..., :-distance] & kept[..., distance:]).sum(-1)[:, None]
