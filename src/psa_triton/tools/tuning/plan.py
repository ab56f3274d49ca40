"""The parts of a run that get budgets of their own, and the denoising step at which each is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class RunPart:
    """Denoising steps `first` to `stop - 1`, which share their budgets."""

    first: int
    stop: int
    measured: int
    """The step that stands for them."""

    def __len__(self) -> int:
        return self.stop - self.first

    def __str__(self) -> str:
        return str(self.first) if len(self) == 1 else f"{self.first} to {self.stop - 1}"


def parts_of_run(steps: int, *, warmup: int, count: int) -> list[RunPart]:
    """The steps after the warm-up in as many parts, nearly equal, each measured in its middle; fewer if steps are few.

    Raises:
        ValueError: the warm-up leaves no step.
    """
    _check_warm_up(steps, warmup)
    count = min(count, steps - warmup)
    bounds = [warmup + part * (steps - warmup) // count for part in range(count + 1)]
    return [RunPart(first, stop, (first + stop) // 2) for first, stop in pairwise(bounds)]


def parts_around(measured: Sequence[int], steps: int, *, warmup: int) -> list[RunPart]:
    """A part around each measured step, the bounds halfway between.

    Args:
        measured: different steps, in order.
        steps: of the run.
        warmup: steps at the start that run dense.

    Raises:
        ValueError: a step is not one of the run's sparse ones.
    """
    _check_warm_up(steps, warmup)
    if wrong := [step for step in measured if not warmup <= step < steps]:
        raise ValueError(
            f"qkv: expected denoising steps from {warmup}, where the warm-up ends, to {steps - 1}, got {wrong[0]}"
        )
    bounds = [warmup, *((here + following + 1) // 2 for here, following in pairwise(measured)), steps]
    return [RunPart(first, stop, step) for (first, stop), step in zip(pairwise(bounds), measured, strict=True)]


def _check_warm_up(steps: int, warmup: int) -> None:
    if warmup >= steps:
        raise ValueError(
            f"num_inference_steps: expected more than the {warmup} warm-up steps, which run dense, got {steps}"
        )
