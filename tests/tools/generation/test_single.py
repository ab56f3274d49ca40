from dataclasses import replace

import numpy as np
import pytest
import torch

from psa_triton.config import PSAConfig
from psa_triton.tools.generation import DENSE, Attention, generate_video, generate_videos
from psa_triton.tools.generation.single import warm_up

# Two of ten key blocks, read in full.
FIFTH = Attention(
    name="hand/fifth", config=PSAConfig(block_m=64, block_n=32, mask_ratios={1: (0, 0.2), 0: (0.2, 1)}, warmup_steps=1)
)


def test_dense_frames_are_those_of_the_plain_pipeline(pipe, request_320):
    video = generate_video(pipe, request_320, DENSE)
    plain = pipe(
        prompt=request_320.prompt,
        width=64,
        height=64,
        num_frames=17,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(42),
    ).frames[0]
    np.testing.assert_array_equal(video.frames, plain)
    assert video.frames.shape == (17, 64, 64, 3)
    assert video.frames.dtype == np.float32


def test_a_seed_gives_the_same_video_again_and_another_seed_another(pipe, request_320):
    first, again = (generate_video(pipe, request_320, FIFTH).frames for _ in range(2))
    other = generate_video(pipe, replace(request_320, seed=43), FIFTH).frames
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_videos_made_together_are_those_made_alone(pipe, request_320):
    requests = [
        replace(request_320, guidance_scale=2.0, negative_prompt="blue"),
        replace(request_320, guidance_scale=2.0, negative_prompt="blue", prompt="a blue ring", seed=7),
    ]
    together = generate_videos(pipe, requests, FIFTH)
    alone = [generate_video(pipe, request, FIFTH) for request in requests]
    assert np.abs(alone[0].frames - alone[1].frames).max() > 0.1
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.frames, other.frames, atol=1e-4)
    assert [video.cost.videos for video in (*together, *alone)] == [2, 2, 1, 1]
    assert together[0].cost == together[1].cost, "they share one cost"


def test_videos_made_together_differ_in_prompt_and_seed_alone(pipe, request_320):
    with pytest.raises(ValueError, match="differ in prompt and seed alone"):
        generate_videos(pipe, [request_320, replace(request_320, num_inference_steps=3)], DENSE)


@pytest.mark.parametrize(("attention", "expected"), [(DENSE, [False]), (FIFTH, [False, True])], ids=["dense", "psa"])
def test_a_warm_up_is_a_step_of_each_attention_that_will_run(attention, expected, pipe, request_320, monkeypatch):
    sparse = []

    def record(pipe, requests, attention):
        (video,) = generate_videos(pipe, requests, attention)
        assert requests[0].num_inference_steps == 1
        sparse.append(video.cost.attention_density is not None)

    monkeypatch.setattr("psa_triton.tools.generation.single.generate_videos", record)
    warm_up(pipe, [request_320], attention)
    assert sparse == expected


def test_cost_of_a_sparse_video_by_hand(pipe, request_320):
    cost = generate_video(pipe, request_320, FIFTH).cost
    assert cost.attention_density == pytest.approx(0.2)
    assert cost.run_density == pytest.approx(0.6), "the first of two steps is dense"
    assert cost.attention_density < cost.attention_density_with_estimation
    assert cost.dense_reasons == ("warm-up",)
    assert 0 < cost.sparse_attention_seconds < cost.transformer_seconds
    assert cost.attention_seconds == cost.sparse_attention_seconds + cost.dense_attention_seconds


def test_cost_of_a_dense_video(pipe, request_320):
    cost = generate_video(pipe, request_320, DENSE).cost
    assert cost.attention_density is None
    assert (cost.run_density, cost.run_density_with_estimation) == (1, 1)
    assert cost.sparse_attention_seconds == 0 < cost.dense_attention_seconds < cost.total_seconds
    assert cost.dense_reasons == ("dense preset",)


def test_steps_are_told_and_the_pipeline_is_left_as_it_came(pipe, request_320):
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    told = []
    generate_video(pipe, replace(request_320, num_inference_steps=3), FIFTH, on_step=lambda *step: told.append(step))
    assert told == [(1, None), (2, None), (3, None)]
    assert [block.attn1.processor for block in pipe.transformer.blocks] == processors
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks


def test_steps_come_with_the_error_measured_so_far(pipe, request_320):
    assert FIFTH.config is not None
    probed = replace(FIFTH, config=FIFTH.config.replace(probe=0.05))
    errors = []
    video = generate_video(pipe, request_320, probed, on_step=lambda _, error: errors.append(error))
    assert len(set(errors)) == request_320.num_inference_steps > 1
    assert errors[-1] == video.cost.measured_error


def test_a_failure_leaves_the_pipeline_as_it_came(pipe, request_320, failing_prompt):
    with pytest.raises(IndexError):
        generate_video(pipe, replace(request_320, prompt=failing_prompt), FIFTH)
    assert not pipe.transformer._forward_hooks
    generate_video(pipe, replace(request_320, num_inference_steps=1), FIFTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 60}, "width: expected a multiple of 16, got 60"),
        ({"height": 272}, "height: expected at most 256, where the model's positions end, got 272"),
        ({"guidance_scale_2": 2.0}, "boundary_ratio"),
    ],
    ids=["size", "positions", "setting"],
)
def test_what_the_pipeline_cannot_do_is_refused(change, message, pipe, request_320):
    with pytest.raises(ValueError, match=message):
        generate_video(pipe, replace(request_320, **change), DENSE)


def test_values_that_are_not_finite_are_an_error(pipe, request_320):
    bias = pipe.transformer.proj_out.bias.data
    before = bias.clone()
    bias.fill_(float("nan"))
    try:
        with pytest.raises(ValueError, match="not finite"):
            generate_video(pipe, request_320, DENSE)
    finally:
        bias.copy_(before)
