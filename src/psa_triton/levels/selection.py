"""Importance to levels: which share of a row's blocks is read at which resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from psa_triton.ratios import check_mask_ratios

_BOUNDARY_SLACK = 1e-9
"""Lets a share such as .29 of 100 blocks, 28.999999999999996 in binary, end at block 29."""
_MASS_SLACK = 1e-6
"""Lets a mass that meets a boundary but for the rounding of float32 importance count as meeting it."""
_MASS_UNITS = 2.0**40
"""Mass is summed in integers of this unit: their sum does not depend on the order in which a device adds."""


def select_levels(
    importance: Tensor,
    mask_ratios: Mapping[int, tuple[float, float]],
    *,
    mode: str = "thresholdbound",
    min_full_ratio: float = 0.06,
) -> Tensor:
    """Give every block pair a level by its importance within the row.

    The blocks of a row are ordered by importance, largest first, ties by position.

    * `topk`: the block of rank `r` gets the level whose `[lo, hi)` holds `r / nk`; a level ends at block
      `floor(nk * hi)`.
    * `thresholdbound`: the block gets the level whose `[lo, hi)` holds the importance mass before it, so the block
      that crosses a boundary still counts to the finer level; then the first `floor(min_full_ratio * nk) + 1` blocks
      are made level 1. A row of zeros gets the finest level throughout.

    Args:
        importance: float `[..., nq, nk]`, at least 0, rows sum to 1 (or are all zeros), as from `block_importance`.
        mask_ratios: `{level: (lo, hi)}`, contiguous from 0 to 1, finest level first and 0 last; levels up to 64.
        mode: `topk` or `thresholdbound`.
        min_full_ratio: share of a row's blocks that stays at level 1 whatever their mass; `topk` ignores it.

    Returns:
        int8, shape and device of `importance`. The same on every run; nothing waits for the device.

    Raises:
        TypeError: `importance` is no floating-point tensor.
        ValueError: fewer than 2 dimensions, bad shares, a level above 64, an unknown `mode`, or a `min_full_ratio`
            outside [0, 1].
    """
    if not isinstance(importance, Tensor) or not importance.is_floating_point():
        raise TypeError(f"importance: expected a floating-point tensor, got {getattr(importance, 'dtype', importance)}")
    if importance.dim() < 2:
        raise ValueError(f"importance: expected [..., nq, nk], got shape {tuple(importance.shape)}")
    try:
        ratios = check_mask_ratios(dict(mask_ratios))
    except ValueError as error:
        raise ValueError(f"mask_ratios: {error}") from error
    if not 0 <= min_full_ratio <= 1:
        raise ValueError(f"min_full_ratio: expected a share from 0 to 1, got {min_full_ratio}")

    ordered, order = importance.sort(dim=-1, descending=True, stable=True)
    if mode == "topk":
        by_rank = _levels_by_rank(importance.shape[-1], ratios).to(importance.device).expand_as(order)
    elif mode == "thresholdbound":
        by_rank = _levels_by_mass(ordered, ratios)
        by_rank[..., : _floor(min_full_ratio * importance.shape[-1]) + 1] = 1
    else:
        raise ValueError(f"mode: expected one of topk, thresholdbound, got {mode!r}")
    return torch.empty_like(by_rank, memory_format=torch.contiguous_format).scatter_(-1, order, by_rank)


def _floor(value: float) -> int:
    return math.floor(value + _BOUNDARY_SLACK)


def _levels_by_rank(blocks: int, ratios: dict[int, tuple[float, float]]) -> Tensor:
    """Level of each rank, int8 `[blocks]` on the CPU."""
    ends = [_floor(blocks * high) for _, high in ratios.values()]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return torch.tensor(list(ratios), dtype=torch.int8).repeat_interleave(torch.tensor(lengths))


def _levels_by_mass(ordered: Tensor, ratios: dict[int, tuple[float, float]]) -> Tensor:
    """Level of each block from the mass before it, int8; `ordered` holds importance, largest first."""
    mass = (ordered.double() * _MASS_UNITS).round_().long()
    before = mass.cumsum(-1).sub_(mass)
    boundaries = torch.tensor([round((high - _MASS_SLACK) * _MASS_UNITS) for _, high in ratios.values()][:-1])
    levels = torch.tensor(list(ratios), dtype=torch.int8)
    passed = torch.bucketize(before, boundaries.to(ordered.device), right=True)
    return levels.to(ordered.device)[passed]
