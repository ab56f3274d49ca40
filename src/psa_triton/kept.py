"""What a key mask leaves of blocks and groups, which are cut by position whatever it says."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

NOWHERE: Final = torch.iinfo(torch.int64).max
"""A position behind all others: where a group that holds no kept token begins and ends."""


def in_groups(x: Tensor, size: int) -> Tensor:
    """`[..., N]` as groups of `size` neighbours `[..., ceil(N / size), size]`, the last filled up with zeros."""
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))


def kept_count(keep: Tensor, size: int) -> Tensor:
    """Kept tokens of each group of `size` neighbours, the last of which may be short.

    Args:
        keep: bool `[..., N]`, which tokens are there.
        size: of a group.

    Returns:
        int64 `[..., ceil(N / size)]`.
    """
    return in_groups(keep, size).sum(-1)


def first_kept(keep: Tensor, size: int) -> Tensor:
    """Position of the first kept token of each group, `NOWHERE` without one; arguments and shape of `kept_count`."""
    kept = in_groups(keep, size)
    return _positions(kept).masked_fill(~kept, NOWHERE).amin(-1)


def last_kept(keep: Tensor, size: int) -> Tensor:
    """Position of the last kept token of each group, `NOWHERE` without one; arguments and shape of `kept_count`."""
    kept = in_groups(keep, size)
    last = _positions(kept).masked_fill(~kept, -1).amax(-1)
    return last.masked_fill(last < 0, NOWHERE)


def nth_kept(keep: Tensor, size: int, rank: Tensor) -> Tensor:
    """Position of the kept token of each group before which `rank` others stand; the group's start without one.

    Args:
        keep, size: as `kept_count`'s.
        rank: int64 `[..., G]`.

    Returns:
        int64 `[..., G]`.
    """
    kept = in_groups(keep, size)
    within = (kept & (kept.cumsum(-1) == rank[..., None] + 1)).int().argmax(-1)
    return _positions(kept)[:, 0] + within


def nearest_kept(keep: Tensor, size: int) -> Tensor:
    """For each token itself if it is kept, else the last kept one before it in its group, else the group's first.

    Args:
        keep, size: as `kept_count`'s.

    Returns:
        int64 `[..., G, size]` positions; of a group without a kept token, its start.
    """
    kept = in_groups(keep, size)
    before = _positions(kept).masked_fill(~kept, -1).cummax(-1).values
    first = nth_kept(keep, size, torch.zeros_like(before[..., 0]))
    return torch.where(before < 0, first[..., None], before)


def _positions(groups: Tensor) -> Tensor:
    """int64, shape of `groups` without its leading dimensions."""
    return torch.arange(groups.shape[-2] * groups.shape[-1], device=groups.device).view(groups.shape[-2:])
