"""How unlike the tokens of a group are: what is left out where they are averaged."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import Blocks, block_count

_TOKENS_AT_A_TIME = 4096
"""Float32 copies of the tokens exist for this many at a time."""


def group_spread(x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Mean squared distance of a block's tokens from the means of their groups, and the block's own mean.

    Two groups of a and b tokens are joined into one: the sum of squares grows by `a b / (a + b)` times the squared
    distance of their means. No large numbers are subtracted, so equal tokens have a spread of exactly 0.

    Args:
        x: keys or values `[B, H, N, D]`.
        blocks: of which x is the keys' side. A block that a mask leaves out has spread and mean 0.

    Returns:
        float32 `[B, H, blocks, log2(n)]`, for groups of 2, 4, ..., `n` tokens, and the means, float32
        `[B, H, blocks, D]`. What holds NaN or inf gives NaN or inf.
    """
    size = max(blocks.n, _TOKENS_AT_A_TIME // blocks.n * blocks.n)
    masks = repeat(None) if blocks.key_mask is None else blocks.key_mask.split(size, dim=-1)
    parts = [_spread(part, blocks.n, keep) for part, keep in zip(x.split(size, dim=-2), masks, strict=False)]
    spreads, means = zip(*parts, strict=True)
    return torch.cat(spreads, dim=-2), torch.cat(means, dim=-2)


def _spread(x: Tensor, n: int, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    tokens = x.shape[-2]
    shape = (block_count(tokens, n), n)
    missing = shape[0] * n - tokens
    x = x.float() if keep is None else x.float().masked_fill(~keep[:, None, :, None], 0)
    means = (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(-2, shape)
    is_there = torch.ones(tokens, dtype=torch.bool, device=x.device) if keep is None else keep[:, None]
    counts = F.pad(is_there, (0, missing)).float().unflatten(-1, shape)
    lengths = counts.sum(-1).clamp(min=1)
    total = torch.zeros(means.shape[:-2], device=x.device)
    spreads = []
    while means.shape[-2] > 1:
        first, second = means[..., 0::2, :], means[..., 1::2, :]
        sizes = counts[..., 0::2] + counts[..., 1::2]
        share = counts[..., 1::2] / sizes.clamp(min=1)
        apart = second - first
        total = total + (counts[..., 0::2] * share * apart.square().sum(-1)).sum(-1)
        means = torch.addcmul(first, apart, share[..., None])
        counts = sizes
        spreads.append(total / lengths)
    return torch.stack(spreads, dim=-1), means[..., 0, :]
