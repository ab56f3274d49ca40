"""Importance to levels: which share of a row's blocks is read at which resolution."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from psa_triton.impl import TRITON_DTYPES, Impl, resolve_impl
from psa_triton.levels.shares import MASS_BITS, Shares, shares_by_mass, shares_by_rank
from psa_triton.ratios import check_mask_ratios


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
        from psa_triton.levels import triton_kernels

        if 0 < importance.shape[-1] <= triton_kernels.LONGEST_ROW:
            return triton_kernels.assign_levels(importance, shares)
    return assign_levels(importance, shares)


def assign_levels(importance: Tensor, shares: Shares) -> Tensor:
    """Sort each row of `importance` `[..., nq, nk]` and give its blocks the levels of `shares`: int8, same shape."""
    ordered, order = importance.sort(dim=-1, descending=True, stable=True)
    if shares.by_mass:
        mass = (ordered.double() * 2.0**MASS_BITS).round_().long()
        before = mass.cumsum(-1).sub_(mass)
    else:
        before = torch.arange(importance.shape[-1], device=importance.device).expand_as(order)
    # Compared with one number at a time: a table of them would have to be copied to the device.
    by_rank = torch.full_like(order, shares.levels[0], dtype=torch.int8)
    for end, level in zip(shares.ends, shares.levels[1:], strict=True):
        by_rank.masked_fill_(before >= end, level)
    by_rank.masked_fill_(torch.arange(by_rank.shape[-1], device=by_rank.device) < shares.full, 1)
    return torch.empty_like(by_rank, memory_format=torch.contiguous_format).scatter_(-1, order, by_rank)
