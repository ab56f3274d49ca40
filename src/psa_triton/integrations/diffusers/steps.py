"""Which denoising step a transformer is called for, read off the scheduler and not counted."""

from __future__ import annotations

import torch


def denoising_step(timestep: torch.Tensor | float, timesteps: torch.Tensor) -> int:
    """Where `timestep` stands in a scheduler's `timesteps`: the index of the nearest one.

    Args:
        timestep: a scalar, `[B]`, or `[B, N]` with one entry a token; clean tokens (an image to start from) stand at 0
            among them, so the largest entry is the step's.
        timesteps: `[steps]`, as the scheduler holds them.

    Raises:
        ValueError: if `timesteps` is None or empty.
    """
    if timesteps is None or len(timesteps) == 0:
        raise ValueError("scheduler.timesteps: expected the timesteps of a run, got none; call set_timesteps first")
    current = float(torch.as_tensor(timestep).max())
    return int((timesteps.detach().to("cpu", torch.float64) - current).abs().argmin())
