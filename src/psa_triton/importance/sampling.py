"""Stratified choice of tokens: one of every few neighbours, the same for all heads."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def stratified_tokens(
    tokens: int,
    stratum: int,
    *,
    pick: Literal["first", "last"],
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """One token of every `stratum` consecutive ones, ascending; the last stratum may be short.

    Args:
        tokens: how many there are to choose from.
        stratum: neighbours that one token stands for.
        pick: which of them, without a `generator`. Queries take the last and keys the first: under a causal mask such
            a query sees such a key whenever any query of its stratum sees any key of the other.
        generator: chooses at random within each stratum instead. The global random state is not touched.
        device: of the result.

    Returns:
        int64 `[ceil(tokens / stratum)]` on `device`.
    """
    starts = torch.arange(0, tokens, stratum, device=device)
    lengths = (tokens - starts).clamp(max=stratum)
    if generator is None:
        return starts if pick == "first" else starts + lengths - 1
    drawn = torch.rand(len(starts), generator=generator, device=generator.device).to(device)
    return starts + (drawn * lengths).long()
