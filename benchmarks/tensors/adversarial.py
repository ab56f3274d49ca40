"""Inputs made to break sparse attention, and random ones. Each hits an assumption that real tensors fulfil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Generator, Tensor

from psa_triton.ordering import grid_order
from tensors import AttentionTensors, Grid

GRID: Final = (16, 32, 32)
HEADS, DIM = 2, 64
SPIKE_EVERY = 32
"""One key in so many stands out: in a row of the smallest blocks there is one each."""

Maker = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From gaussian queries and keys `[1, H, N, D]`, and places along the curve `[N]`, to those of the case."""


def _random(q: Tensor, k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    return q, k


def _constant_keys(q: Tensor, k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Every block matters alike."""
    return q, k[:, :, :1].expand_as(k).contiguous()


def _spikes(q: Tensor, k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """All attention falls on one key a block, at a place that changes: a mean of keys hides it, a sample misses it."""
    shared = torch.zeros(DIM)
    shared[0] = 1.0
    spiked = place % SPIKE_EVERY == (place // SPIKE_EVERY * 7) % SPIKE_EVERY
    return 0.3 * q + 8 * shared, 0.3 * k + torch.where(spiked[:, None], 10 * shared, 0)


def _one_hot(q: Tensor, k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """A query's keys are the one in `DIM` that is equal to it, far from each other; all others are alike to it."""
    axes = 10 * torch.eye(DIM)
    return axes[q[..., 0].mul(1e4).long() % DIM], axes[k[..., 0].mul(1e4).long() % DIM]


def _alternating_signs(q: Tensor, k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours cancel: the mean of a group is nothing like any of its keys."""
    sign = 1 - 2 * (place % 2)
    return q, 0.1 * k + 3 * sign[:, None] * k[:, :, :1]


def _huge_norms(q: Tensor, k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in the tens of thousands: a softmax that is not careful overflows; one key takes it all."""
    return 100 * q, 100 * k


CASES: Final[dict[str, Maker]] = {
    "random": _random,
    "constant keys": _constant_keys,
    "one spike a block": _spikes,
    "one-hot": _one_hot,
    "alternating signs": _alternating_signs,
    "huge norms": _huge_norms,
}


def adversarial_tensors(case: str, grid: Grid = GRID) -> AttentionTensors:
    """Two heads of a case of `CASES`, D = 64, gaussian values; the same on every call.

    What depends on neighbourhood follows the Gilbert curve, the default order, where it does the most harm.
    """
    t, h, w = grid
    generator = Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, t * h * w, DIM, generator=generator) for _ in range(3))
    q, k = CASES[case](q, k, grid_order("Gilbert", grid).inverse)
    return AttentionTensors(f"made/{case}", q, k, v, grid)
