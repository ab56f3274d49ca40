"""Seconds of functions side by side: interleaved rounds and medians, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_seconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median wall-clock seconds of each function; every round runs each of them once, after one that is not counted.

    On a GPU the host waits for the device before and after each, so that small shapes hold the time of launching.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for counted in [False] + [True] * repeats:
        for name, function in functions.items():
            elapsed = _elapsed(function, device)
            if counted:
                seconds[name].append(elapsed)
    return {name: statistics.median(each) for name, each in seconds.items()}


def _elapsed(function: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
