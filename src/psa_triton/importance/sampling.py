"""Stratified choice of tokens: one of every few neighbours, the same for all heads."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from psa_triton.blocks import block_lengths
from psa_triton.kept import kept_count, nth_kept


def stratified_tokens(
    tokens: int,
    stratum: int,
    *,
    pick: Literal["first", "last"],
    generator: torch.Generator | None,
    device: torch.device,
    key_mask: Tensor | None = None,
) -> Tensor:
    """One token of every `stratum` consecutive ones, ascending; the last stratum may be short.

    Args:
        tokens: how many there are to choose from.
        stratum: neighbours that one token stands for.
        pick: which of them, without a `generator`. Queries take the last and keys the first: under a causal mask such
            a query sees such a key whenever any query of its stratum sees any key of the other.
        generator: chooses at random within each stratum instead. The global random state is not touched.
        device: of the result.
        key_mask: bool `[B, tokens]`: only the kept tokens of a stratum are chosen among; in one without any, no matter.

    Returns:
        int64 `[ceil(tokens / stratum)]` on `device`, or `[B, ...]` with a key mask.
    """
    starts = torch.arange(0, tokens, stratum, device=device)
    lengths = block_lengths(tokens, stratum, device) if key_mask is None else kept_count(key_mask, stratum)
    if generator is not None:
        drawn = torch.rand(len(starts), generator=generator, device=generator.device).to(device)
        rank = (drawn * lengths).long()
    else:
        rank = torch.zeros_like(lengths) if pick == "first" else lengths - 1
    return starts + rank if key_mask is None else nth_kept(key_mask, stratum, rank)
