"""Importance to levels: which share of a row's blocks is read at which resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from psa_triton.impl import TRITON_DTYPES, Impl, resolve_impl
from psa_triton.ratios import check_mask_ratios

MASS_BITS: Final = 40
"""Mass is summed in integers of `2 ** -40`: their sum does not depend on the order in which a device adds."""
_BOUNDARY_SLACK = 1e-9
"""Lets a share such as .29 of 100 blocks, 28.999999999999996 in binary, end at block 29."""
_MASS_SLACK = 1e-6
"""Lets a mass that meets a boundary but for the rounding of float32 importance count as meeting it."""


@dataclass(frozen=True)
class Shares:
    """Levels of a row's blocks, in the order of their importance.

    Attributes:
        levels: finest first, 0 last.
        ends: where every level but the last ends: block `b` gets `levels[i]`, `i` the number of ends that what lies
            before `b` has reached. Blocks before it, or their mass in units of `2 ** -MASS_BITS`.
        full: this many blocks are level 1 whatever comes before them.
        by_mass: whether ends are mass.

    Where rows have different numbers of blocks, `ends` or `full` may be int64 tensors that broadcast with the rows.
    """

    levels: tuple[int, ...]
    ends: tuple[int | Tensor, ...]
    full: int | Tensor
    by_mass: bool


def select_levels(
    importance: Tensor,
    mask_ratios: Mapping[int, tuple[float, float]],
    *,
    mode: str = "thresholdbound",
    min_full_ratio: float = 0.06,
    key_blocks: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Give every block pair a level by its importance within the row.

    The blocks of a row are ordered by importance, largest first, ties by position.

    * `topk`: the block of rank `r` gets the level whose `[lo, hi)` holds `r / nk`; a level ends at block
      `floor(nk * hi)`. Of few blocks a level's share may come to none; the most important block gets the finest level
      that has a share (`lo < hi`) all the same, so that no row is left with nothing to read.
    * `thresholdbound`: the block gets the level whose `[lo, hi)` holds the importance mass before it, so the block
      that crosses a boundary still counts to the finer level; then the first `floor(min_full_ratio * nk) + 1` blocks
      are made level 1. A row of zeros gets the finest level throughout.

    Args:
        importance: float `[..., nq, nk]`, at least 0, rows sum to 1 (or are all zeros), as from `block_importance`.
        mask_ratios: `{level: (lo, hi)}`, contiguous from 0 to 1, finest level first and 0 last; levels up to 64.
        mode: `topk` or `thresholdbound`.
        min_full_ratio: share of a row's blocks that stays at level 1 whatever their mass; `topk` ignores it.
        key_blocks: int64 `[B]`, how many blocks `importance [B, ..., nq, nk]` is of, where a key mask leaves whole
            blocks out; the caller has given these the least importance. None: all `nk` of them.
        impl: `triton` (a GPU kernel), any other (the same torch code), or `auto`; see `resolve_impl`. All
            give the same levels. Rows of more than 4096 blocks, and float64, always take the torch code.

    Returns:
        int8, shape and device of `importance`. The same on every run; nothing waits for the device.

    Raises:
        TypeError: `importance` is no floating-point tensor.
        ValueError: fewer than 2 dimensions, bad shares, a level above 64, an unknown `mode`, a `min_full_ratio`
            outside [0, 1], or an `impl` that is unknown or cannot run here.
        ImportError: the GPU kernel is wanted and Triton is missing or too old.
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

    blocks: int | Tensor = importance.shape[-1]
    if key_blocks is not None:
        # In float64, as Python's own numbers are.
        blocks = key_blocks.double().view(-1, *[1] * (importance.dim() - 1))
    if mode == "topk":
        shares = shares_by_rank(ratios, blocks)
    elif mode == "thresholdbound":
        shares = shares_by_mass(ratios, blocks, min_full_ratio)
    else:
        raise ValueError(f"mode: expected one of topk, thresholdbound, got {mode!r}")
    if importance.dtype in TRITON_DTYPES and resolve_impl(impl, importance) == "triton":
        from psa_triton.levels import selection_triton

        if 0 < importance.shape[-1] <= selection_triton.LONGEST_ROW:
            return selection_triton.assign_levels(importance, shares)
    return assign_levels(importance, shares)


def assign_levels(importance: Tensor, shares: Shares) -> Tensor:
    """Sort each row of `importance` `[..., nq, nk]` and give its blocks the levels of `shares`: int8, same shape."""
    ordered, order = importance.sort(dim=-1, descending=True, stable=True)
    if shares.by_mass:
        mass = (ordered.double().clamp_(min=0) * 2.0**MASS_BITS).round_().long()
        before = mass.cumsum(-1).sub_(mass)
    else:
        before = torch.arange(importance.shape[-1], device=importance.device).expand_as(order)
    # Compared with one number at a time: a table of them would have to be copied to the device.
    by_rank = torch.full_like(order, shares.levels[0], dtype=torch.int8)
    for end, level in zip(shares.ends, shares.levels[1:], strict=True):
        by_rank.masked_fill_(before >= end, level)
    by_rank.masked_fill_(torch.arange(by_rank.shape[-1], device=by_rank.device) < shares.full, 1)
    return torch.empty_like(by_rank, memory_format=torch.contiguous_format).scatter_(-1, order, by_rank)


def shares_by_rank(ratios: Mapping[int, tuple[float, float]], blocks: int | Tensor) -> Shares:
    """A level ends at block `_floor(blocks * hi)`; the finest with a share ends after one block at the earliest."""
    # Shares are contiguous from 0, so all levels before the finest with a share end at 0.
    ends = [_at_least_one(_floor(blocks * high)) if high > 0 else 0 for _, high in ratios.values()]
    return Shares(tuple(ratios), tuple(ends[:-1]), full=0, by_mass=False)


def shares_by_mass(ratios: Mapping[int, tuple[float, float]], blocks: int | Tensor, min_full_ratio: float) -> Shares:
    """A level ends where a share `hi` of the mass is reached; `floor(min_full_ratio * blocks) + 1` blocks are full."""
    ends = [round((high - _MASS_SLACK) * 2**MASS_BITS) for _, high in ratios.values()]
    return Shares(tuple(ratios), tuple(ends[:-1]), full=_floor(blocks * min_full_ratio) + 1, by_mass=True)


def _at_least_one(end: int | Tensor) -> int | Tensor:
    return end.clamp(min=1) if isinstance(end, Tensor) else max(end, 1)


def _floor(value: float | Tensor) -> int | Tensor:
    """`math.floor` of a product whose rounding may have brought it just below an integer; of a tensor, as int64."""
    if isinstance(value, Tensor):
        return (value + _BOUNDARY_SLACK).floor().long()
    return math.floor(value + _BOUNDARY_SLACK)
