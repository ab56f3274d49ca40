"""Memory that the tasks of a thread, and its calls, take in turn."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

_KEPT: Final = 4 << 20
"""Bytes of a tensor on a CPU up to which it stays for the next call of its thread."""


class Scratch:
    """Uninitialised tensors by name.

    The rows of a list and their weights are megabytes, and an allocator that gives them back takes them anew for every
    block, or call: pages fresh from the system cost as much as the products (`docs/log.md`).
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A contiguous tensor; what was taken by this name and dtype before is overwritten."""
        size = math.prod(shape)
        held = self._held.pop((name, dtype), None)
        if held is None or held.numel() < size or held.device != device:
            del held  # before the larger one is allocated
            held = torch.empty(size, dtype=dtype, device=device)
        self._held[name, dtype] = held
        return held[:size].view(*shape)

    def let_go(self) -> None:
        """Of all that is not small, and of other devices, whose allocators keep memory themselves."""
        self._held = {
            name: held for name, held in self._held.items() if held.device.type == "cpu" and held.nbytes <= _KEPT
        }


_OF_THREAD = threading.local()


@contextmanager
def thread_scratch() -> Iterator[Scratch]:
    """Scratch of this thread for one call, with what is small from the last one; nested calls have their own."""
    # Tensors made in inference mode cannot be written outside of it.
    name = "inference" if torch.is_inference_mode_enabled() else "normal"
    free: list[Scratch] = _OF_THREAD.__dict__.setdefault(name, [])
    scratch = free.pop() if free else Scratch()
    try:
        yield scratch
    finally:
        scratch.let_go()
        free.append(scratch)
