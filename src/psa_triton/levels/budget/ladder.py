"""The levels that a budget chooses among, and what each costs."""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.blocks import block_lengths
from psa_triton.ratios import COARSEST_LEVEL


def ladder(block_n: int) -> tuple[int, ...]:
    """Levels from coarse to fine: 0, the whole block (64 tokens at most), ..., 8, 4, 2, 1."""
    coarsest = min(block_n, COARSEST_LEVEL)
    return (0, *(coarsest >> step for step in range(coarsest.bit_length())))


def step_prices(key_tokens: int, block_n: int, device: torch.device) -> Tensor:
    """Groups that each step up the ladder adds for each key block: int32 `[S, nk]`."""
    lengths = block_lengths(key_tokens, block_n, device).int()
    groups = [torch.zeros_like(lengths), *((lengths + level - 1) // level for level in ladder(block_n)[1:])]
    return torch.stack(groups).diff(dim=0)
