"""Peak memory of one attention beside its inputs and output."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def scratch_bytes(attention: Callable[[], Tensor], device: torch.device) -> int | None:
    """Extra bytes at the peak of a call, without its output; None where the system does not tell.

    On a CPU the resident memory of the process counts, so call it in a fresh one: see `in_fresh_process`.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = attention()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before - out.nbytes)
    if device.type != "cpu" or not _CLEAR.exists():
        return None
    _CLEAR.write_text("5")  # the peak starts again from what is resident now
    before = _peak_resident()
    out = attention()
    return max(0, _peak_resident() - before - out.nbytes)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """What a module's function gives in a process of its own; errors are raised here."""
    # glibc keeps freed tensors for later; with this they go back at once, so that the peak is of memory in use.
    environment = patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536")
    with environment, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak_resident() -> int:
    return next(int(line.split()[1]) * 1024 for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
