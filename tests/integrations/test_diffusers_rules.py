"""From which length on sequences run sparse, and whether a preset's `video_scale` is the pipeline's."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_pipelines import (
    SPARSE,
    make_cogvideox_pipeline,
    make_cogvideox_transformer,
    make_wan_inputs,
    make_wan_pipeline,
    make_wan_transformer,
)

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import apply_psa, check_video_scale, pipeline_scale
from psa_triton.integrations.rules import MIN_KEY_BLOCKS, DenseRules, break_even
from psa_triton.presets import VideoScale, load_presets_file
from psa_triton.tools.generation import find_source, load_pipeline

KEY_BLOCKS = MIN_KEY_BLOCKS["diffusion"]


@pytest.fixture
def as_shipped(short_sequences_sparse, monkeypatch):
    monkeypatch.setattr("psa_triton.integrations.rules.break_even", break_even)
    monkeypatch.setitem(MIN_KEY_BLOCKS, "diffusion", KEY_BLOCKS)


@pytest.mark.parametrize(
    ("device", "block_n", "min_tokens", "least"),
    [
        pytest.param("cuda", 128, None, 1024, id="eight-key-blocks"),
        pytest.param("cuda", 32, None, 256, id="small-key-blocks"),
        pytest.param("cpu", 128, 300, 300, id="asked-for"),
        pytest.param("cuda", 128, 300, 300, id="asked-for-on-a-gpu"),
    ],
)
def test_short_sequences_run_dense(device, block_n, min_tokens, least, as_shipped):
    config = PSAConfig(block_n=block_n)
    rules = DenseRules(kind="diffusion", config=config, min_tokens=min_tokens)
    of_length = partial(rules.of_length, config=config, device=torch.device(device), dtype=torch.float32)
    assert of_length(least - 1) == f"fewer than {least} tokens"
    assert of_length(least) is None


@pytest.mark.parametrize("kind", ["diffusion", "language"])
def test_where_dense_is_faster_it_runs(kind, as_shipped):
    config = PSAConfig(block_n=32)
    least = math.ceil(break_even(config, torch.float32, "cpu", is_causal=kind == "language"))
    rules = DenseRules(kind=kind, config=config)
    here = dict(config=config, device=torch.device("cpu"), dtype=torch.float32)
    assert rules.of_length(least - 1, **here) == f"dense is faster below {least} tokens here"
    assert rules.of_length(least, **here) is None
    assert replace(rules, impl="cpu").of_length(least - 1, **here) is None
    assert replace(rules, min_tokens=0).of_length(1, **here) is None


def test_a_config_that_never_pays_runs_dense_at_any_length(as_shipped):
    config = PSAConfig(mask_mode="topk", mask_ratios={1: (0, 0.9), 0: (0.9, 1)})
    reason = DenseRules(kind="diffusion", config=config).of_length(10**6, config, torch.device("cpu"), torch.float32)
    assert reason == "dense is faster at this density"


def test_a_forward_is_of_the_device_it_runs_on(as_shipped):
    transformer = make_wan_transformer()
    with torch.no_grad(), apply_psa(transformer, SPARSE) as handle:
        transformer(**make_wan_inputs())
    (reason,) = {record.reason for record in handle.stats().records}
    assert reason is not None and reason.startswith(("fewer than 256 tokens", "dense is faster below"))


def time_patches():
    """Two latent frames a token, as CogVideoX1.5 has it."""
    return make_cogvideox_pipeline(make_cogvideox_transformer(patch_size_t=2))


@pytest.mark.parametrize(
    ("make_pipe", "section"),
    [(make_wan_pipeline, "Wan2.1_14b"), (make_cogvideox_pipeline, "CogVideo_5b"), (time_patches, "CogVideo1.5_5b")],
    ids=["wan", "cogvideox", "cogvideox-1.5"],
)
def test_the_scale_of_a_pipeline_is_that_of_its_section(make_pipe, section):
    scale = load_presets_file().section(section).video_scale
    assert pipeline_scale(make_pipe()) == scale
    check_video_scale(make_pipe(), section, scale)


def test_another_scale_is_an_error_that_tells_both():
    scale = VideoScale(width_divisor=32, height_divisor=32, depth_divisor=4)
    message = (
        r"section Wan2.2_5B .* says 32 x 32 pixels and 4 frames a token, but in this pipeline it is 16 x 16 pixels"
    )
    with pytest.raises(ValueError, match=message):
        check_video_scale(make_wan_pipeline(), "Wan2.2_5B", scale)


def test_apply_psa_checks_the_section_of_a_recognised_model(monkeypatch):
    pipe = load_pipeline(find_source("tiny-wan"), device=torch.device("cpu"), dtype=torch.float32, width=96, height=96)
    apply_psa(pipe, "psa_balanced").remove()
    pipe.vae_scale_factor_spatial *= 2
    for preset in (None, "psa_balanced"):
        with pytest.raises(ValueError, match="section tiny-wan of the presets file says 8 x 8 pixels"):
            apply_psa(pipe, preset)
    apply_psa(pipe, "tiny-wan/psa_balanced").remove()
    apply_psa(pipe.transformer, "psa_timing").remove()
