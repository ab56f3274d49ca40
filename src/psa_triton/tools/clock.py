"""Seconds of functions side by side: interleaved rounds, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch

from psa_triton.integrations.stats import now


def seconds_by_round(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device, warm_up: bool = True
) -> dict[str, list[float]]:
    """Wall-clock seconds of each function in each round; every round runs each of them once.

    On a GPU the host waits for the device before and after each, so that small shapes hold the time of launching.

    Args:
        functions: by name.
        rounds: that count.
        device: that they run on.
        warm_up: begin with a round that does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for counted in [False] * warm_up + [True] * rounds:
        for name, function in functions.items():
            began = now(device)
            function()
            elapsed = now(device) - began
            if counted:
                seconds[name].append(elapsed)
    return seconds


def median_seconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median of `seconds_by_round`, after a warm-up."""
    seconds = seconds_by_round(functions, rounds=repeats, device=device)
    return {name: statistics.median(each) for name, each in seconds.items()}
