"""The levels that a budget chooses among, and what each costs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import block_lengths
from psa_triton.kept import kept_count
from psa_triton.ratios import COARSEST_LEVEL


def ladder(block_n: int) -> tuple[int, ...]:
    """Levels from coarse to fine: 0, the whole block (64 tokens at most), ..., 8, 4, 2, 1."""
    coarsest = min(block_n, COARSEST_LEVEL)
    return (0, *(coarsest >> step for step in range(coarsest.bit_length())))


def step_prices(key_tokens: int, block_n: int, device: torch.device, key_mask: Tensor | None = None) -> Tensor:
    """Groups that each step up the ladder adds for each key block: int32 `[1, S, nk]`.

    With a key mask, bool `[B, Nk]`, groups that hold a kept key: `[B, S, nk]`.
    """
    if key_mask is not None:
        # Which groups of 1, 2, 4, ... tokens are there, then how many of them in each block.
        keep = F.pad(key_mask, (0, -key_tokens % block_n))
        is_there = {level: keep.unflatten(-1, (-1, level)).any(-1) for level in ladder(block_n)[1:]}
        counts = [kept_count(groups, block_n // level).int() for level, groups in is_there.items()]
        return torch.stack([torch.zeros_like(counts[0]), *counts], dim=1).diff(dim=1)
    lengths = block_lengths(key_tokens, block_n, device).int()
    groups = [torch.zeros_like(lengths), *((lengths + level - 1) // level for level in ladder(block_n)[1:])]
    return torch.stack(groups).diff(dim=0)[None]
