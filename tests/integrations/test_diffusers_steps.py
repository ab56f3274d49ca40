"""Which denoising step a forward belongs to, and what warm-up makes of it."""

from functools import partial

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    CogVideoXVideoToVideoPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanVideoToVideoPipeline,
)
from small_pipelines import (
    BOTH,
    SPARSE,
    make_cogvideox_pipeline,
    make_video,
    make_video_from_video,
    make_wan_pipeline,
    sparse_steps,
)

from psa_triton.integrations.diffusers import apply_psa
from psa_triton.integrations.diffusers.steps import denoising_step


@pytest.mark.parametrize(
    ("timestep", "step"),
    [
        (999.0, 0),
        (torch.tensor(667), 1),
        (torch.tensor([660.0, 660.0]), 1),
        (torch.tensor([[0.0, 0.0, 333.0], [0.0, 333.0, 333.0]]), 2),
        (torch.tensor([10.0]), 2),
    ],
    ids=["number", "scalar", "batch-nearest", "per-token-largest", "below-the-last"],
)
def test_denoising_step_is_the_nearest_timestep(timestep, step):
    assert denoising_step(timestep, torch.tensor([999, 667, 333])) == step


@pytest.mark.parametrize(
    ("current", "step"), [(None, 1), (1, 1), (2, 2), (0, 1)], ids=["unknown", "first", "second", "elsewhere"]
)
def test_of_equal_timesteps_the_schedulers_own_step_counts(current, step):
    """Schedules of second order have timesteps twice; in bfloat16 996 stands for 994 to 998."""
    twice = torch.tensor([999.0, 667.0, 667.0, 333.0])
    assert denoising_step(torch.tensor([667.0]), twice, current=current) == step
    close = torch.tensor([999.9, 997.5, 995.2, 991.0])
    assert denoising_step(torch.tensor([996.0], dtype=torch.bfloat16), close, current=current) == step


@BOTH
def test_warm_up_is_bit_identical(make_pipe):
    pipe = make_pipe()
    dense = make_video(pipe, guidance_scale=3.0)
    with apply_psa(pipe, SPARSE.replace(warmup_steps=3)) as handle:
        warm_up_alone = make_video(pipe, guidance_scale=3.0)
    assert torch.equal(warm_up_alone, dense)
    summary = handle.stats().summary
    assert (summary.sparse_calls, summary.gathers) == (0, 0)
    assert {record.reason for record in handle.stats().records} == {"warm-up"}


@BOTH
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["no-guidance", "guidance"])
def test_first_steps_are_dense_in_every_call(make_pipe, guidance_scale):
    pipe = make_pipe()
    with apply_psa(pipe, SPARSE.replace(warmup_steps=2)) as handle:
        first = make_video(pipe, steps=4, guidance_scale=guidance_scale)
        assert sparse_steps(handle.stats()) == {0: False, 1: False, 2: True, 3: True}
        handle.reset()
        assert torch.equal(make_video(pipe, steps=4, guidance_scale=guidance_scale), first)
        assert sparse_steps(handle.stats()) == {0: False, 1: False, 2: True, 3: True}
        handle.reset()
        make_video(pipe, steps=3, guidance_scale=guidance_scale)
        assert sparse_steps(handle.stats()) == {0: False, 1: False, 2: True}


def chosen_timesteps():
    """As distilled LoRAs are run: most of a few steps at much noise."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps = partial(scheduler.set_timesteps, sigmas=[1.0, 0.9375, 0.8333, 0.625])
    return scheduler


SCHEDULES = {
    "a timestep per token": (lambda: make_wan_pipeline(expand_timesteps=True), None, 3),
    "wan's swapped": (make_wan_pipeline, FlowMatchEulerDiscreteScheduler(shift=5.0), 3),
    "cogvideox's swapped": (make_cogvideox_pipeline, CogVideoXDPMScheduler(timestep_spacing="trailing"), 3),
    "chosen timesteps": (make_wan_pipeline, chosen_timesteps(), 4),
}


@pytest.mark.parametrize(("make_pipe", "scheduler", "steps"), SCHEDULES.values(), ids=SCHEDULES)
def test_the_scheduler_that_runs_tells_the_step(make_pipe, scheduler, steps):
    pipe = make_pipe()
    with apply_psa(pipe, SPARSE.replace(warmup_steps=1)) as handle:
        pipe.scheduler = scheduler or pipe.scheduler
        make_video(pipe, steps=steps)
    assert sparse_steps(handle.stats()) == {step: step > 0 for step in range(steps)}


def test_two_transformers_share_the_step_count():
    """Timesteps 999, 667, 333 (or one less, by version) around a boundary of 500."""
    pipe = make_wan_pipeline(two_transformers=True)
    with apply_psa(pipe, SPARSE.replace(warmup_steps=1)) as handle:
        make_video(pipe, steps=3)
    assert {(record.transformer, record.step, record.sparse) for record in handle.stats().records} == {
        ("transformer", 0, False),
        ("transformer", 1, True),
        ("transformer_2", 2, True),
    }


@pytest.mark.parametrize(
    ("kind", "make_pipe", "strength", "expected"),
    [
        (WanVideoToVideoPipeline, make_wan_pipeline, 0.5, {2, 3}),
        (CogVideoXVideoToVideoPipeline, make_cogvideox_pipeline, 0.25, {3}),
    ],
    ids=["wan", "cogvideox"],
)
def test_video_to_video_starts_where_its_strength_says(kind, make_pipe, strength, expected):
    """Warm-up is for steps of much noise: a run that starts past them has none."""
    parts = make_pipe().components
    parts.pop("transformer_2", None)
    pipe = kind(**parts)
    with apply_psa(pipe, SPARSE.replace(warmup_steps=3)) as handle:
        make_video_from_video(pipe, steps=4, strength=strength)
    assert sparse_steps(handle.stats()) == {step: step >= 3 for step in expected}
