"""Inputs made to break sparse attention, and random ones. Each hits an assumption that real tensors fulfil."""

from __future__ import annotations

from typing import Final

import torch

from psa_triton.ordering import grid_order
from tensors import AttentionTensors, Grid

GRID: Final = (16, 32, 32)
HEADS, DIM = 2, 64
SPIKE_EVERY: Final = 32
"""One key in so many stands out: in a row of the smallest blocks there is one each."""
CASES: Final = ("random", "constant keys", "one spike a block", "one-hot", "alternating signs", "huge norms")


def adversarial_tensors(case: str, grid: Grid = GRID) -> AttentionTensors:
    """Two heads of a case of `CASES`, D = 64, gaussian values; the same on every call.

    What depends on neighbourhood follows the Gilbert curve, the default order, where it does the most harm.
    """
    t, h, w = grid
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, t * h * w, DIM, generator=generator) for _ in range(3))
    place = grid_order("Gilbert", grid).inverse
    match case:
        case "random":
            pass
        case "constant keys":  # every block matters alike
            k = k[:, :, :1].expand_as(k).contiguous()
        case "one spike a block":  # where all attention falls; its place changes: means hide it, samples miss it
            shared = torch.zeros(DIM)
            shared[0] = 1.0
            spiked = place % SPIKE_EVERY == (place // SPIKE_EVERY * 7) % SPIKE_EVERY
            q, k = 0.3 * q + 8 * shared, 0.3 * k + torch.where(spiked[:, None], 10 * shared, 0)
        case "one-hot":  # a query's keys are the one in `DIM` equal to it, far from each other; all others are alike
            axes = 10 * torch.eye(DIM)
            q, k = (axes[x[..., 0].mul(1e4).long() % DIM] for x in (q, k))
        case "alternating signs":  # neighbours cancel: the mean of a group is nothing like any of its keys
            sign = 1 - 2 * (place % 2)
            k = 0.1 * k + 3 * sign[:, None] * k[:, :, :1]
        case "huge norms":  # logits in the tens of thousands: a careless softmax overflows; one key takes it all
            q, k = 100 * q, 100 * k
        case _:
            raise ValueError(f"case: expected one of {CASES}, got {case!r}")
    return AttentionTensors(f"made/{case}", q, k, v, grid)
