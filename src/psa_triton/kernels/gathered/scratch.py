"""Memory that the tasks of a thread take in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class Scratch:
    """Uninitialised tensors by name.

    The rows of a list and their weights are megabytes, and an allocator that gives them back takes them anew for every
    block: pages fresh from the system cost as much as the products (`docs/log.md`).
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A contiguous tensor; what was taken by this name and dtype before is overwritten."""
        size = math.prod(shape)
        held = self._held.pop((name, dtype), None)
        if held is None or held.numel() < size:
            del held  # before the larger one is allocated
            held = torch.empty(size, dtype=dtype, device=device)
        self._held[name, dtype] = held
        return held[:size].view(*shape)
