"""Which denoising step a transformer is called for, read off the scheduler and not counted."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from psa_triton.integrations.diffusers.pipelines import running_pipeline, scheduler_of


def denoising_step(timestep: torch.Tensor | float, timesteps: torch.Tensor, *, current: int | None = None) -> int:
    """Where `timestep` stands in a scheduler's `timesteps`: the index of the nearest one.

    Args:
        timestep: a scalar, `[B]`, or `[B, N]` with one entry a token; clean tokens (an image to start from) stand at 0
            among them, so the largest entry is the step's. The schedule is rounded to its dtype.
        timesteps: `[steps]`, as the scheduler holds them, at least one.
        current: index to prefer among equally near ones: some schedules have timesteps twice, or too close together for
            the dtype.
    """
    timestep = torch.as_tensor(timestep)
    distances = (timesteps.detach().to("cpu").to(timestep.dtype).double() - float(timestep.max())).abs()
    nearest = (distances == distances.min()).nonzero().flatten().tolist()
    return current if current is not None and current in nearest else int(nearest[0])


class Schedule:
    """Finds the scheduler that a forward belongs to, and the step in it.

    It is that of the pipeline whose call is running: pipelines may share a transformer. A forward outside of any
    pipeline's call, as in a loop of one's own, goes by the scheduler that `apply_psa` was told of.

    Args:
        pipe: the pipeline given to `apply_psa`; it is not kept alive.
        scheduler: the scheduler given to `apply_psa`.
    """

    def __init__(self, pipe: Any = None, scheduler: Any = None) -> None:
        self._pipe = None if pipe is None else weakref.ref(pipe)
        self._scheduler = scheduler

    def __deepcopy__(self, memo: dict[int, Any]) -> Schedule:
        # With a pipeline its transformer's schedule is copied, and is the copy's; with a transformer alone no pipeline
        # must be copied, text encoders and all.
        pipe, scheduler = self._pipe and self._pipe(), self._scheduler
        return Schedule(memo.get(id(pipe), pipe), memo.get(id(scheduler), scheduler))

    def __reduce__(self) -> tuple[type[Schedule], tuple[()]]:
        # What is loaded from a file has no part in the runs of the scheduler that was.
        return Schedule, ()

    @property
    def scheduler(self) -> Any | None:
        """For forwards outside of a pipeline's call; a pipeline's may be swapped at any time."""
        pipe = self._pipe and self._pipe()
        return self._scheduler if self._scheduler is not None or pipe is None else scheduler_of(pipe)

    def step(self, transformer: nn.Module, timestep: torch.Tensor | float | None) -> tuple[int, torch.Tensor]:
        """The step that a forward of `transformer` at `timestep` is, and the timesteps of its run.

        Each run has a tensor of its own: `set_timesteps` makes it.

        A None goes by where the scheduler says that it stands: it counts the steps that were taken.

        Raises:
            ValueError: if that cannot be told.
        """
        own, pipe = self.scheduler, running_pipeline(transformer)
        running = None if pipe is None else scheduler_of(pipe)
        if running is not None:
            try:
                return _step(running, timestep, rounded=True)
            except ValueError:
                if own is None or own is running:
                    raise
        if own is None:
            raise ValueError(
                "scheduler: expected one to tell the denoising step by, got none: the transformer was called "
                "outside of a pipeline's call; pass scheduler= to apply_psa, or have no dense steps and no "
                "budget_table"
            )
        return _step(own, timestep, rounded=False)


def _step(scheduler: Any, timestep: torch.Tensor | float | None, *, rounded: bool) -> tuple[int, torch.Tensor]:
    """The step at `timestep` of a scheduler, and its timesteps.

    Args:
        scheduler: of the forward.
        timestep: of the forward.
        rounded: whether the timestep may have been rounded on its way, as a pipeline does that computes in bfloat16.

    Raises:
        ValueError: if the scheduler has no such timestep, or was not told the timesteps of a run.
    """
    name, timesteps = type(scheduler).__name__, scheduler.timesteps
    if timesteps is None or len(timesteps) == 0 or _is_fresh(scheduler):
        raise ValueError(
            f"scheduler: expected the timesteps of a run, got a {name} whose set_timesteps was not called; pass the "
            "scheduler of this run as scheduler= to apply_psa, or have no dense steps and no budget_table"
        )
    current = getattr(scheduler, "step_index", None)
    if timestep is None:
        return min(current or getattr(scheduler, "begin_index", None) or 0, len(timesteps) - 1), timesteps
    step = denoising_step(timestep, timesteps, current=current)
    timestep = torch.as_tensor(timestep)
    found, wanted = float(timesteps[step].to(timestep.dtype)), float(timestep.max())
    tolerance = 2**-8 * float(timesteps.abs().max()) if rounded else 0.0
    if abs(found - wanted) > tolerance:
        raise ValueError(
            f"scheduler: expected one of the {len(timesteps)} timesteps of the {name}, got timestep {wanted:g} (the "
            f"nearest is {found:g}): the forward belongs to another schedule; pass the scheduler of this run as "
            "scheduler= to apply_psa, or have no dense steps and no budget_table"
        )
    return step, timesteps


def _is_fresh(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers still has the timesteps of training that it is made with."""
    trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    never_set = getattr(scheduler, "num_inference_steps", None) is None
    return never_set and trained == len(scheduler.timesteps)
