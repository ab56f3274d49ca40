import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from diffusers import AllegroPipeline
from small_families import SMALL

from psa_triton.integrations.diffusers import pipeline_scale
from psa_triton.presets import VideoScale
from psa_triton.tools.generation import find_source, make_requests
from psa_triton.tools.generation.calls import pipeline_call
from psa_triton.tools.generation.single import _check_size
from psa_triton.tools.generation.source import check_size, video_scale

SIXTEEN = VideoScale(width_divisor=16, height_divisor=16, depth_divisor=4)


def write_folder(folder, index, transformer):
    """What tells a pipeline folder's model, without weights."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text(json.dumps(transformer))
    return folder


def test_a_key_brings_its_repository_and_defaults():
    source = find_source("wan21_1.3b")
    assert source.location == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert (source.default("width"), source.default("height"), source.default("fps")) == (1280, 720, 16)
    assert not source.is_folder


def test_a_folder_with_a_known_model_gets_that_models_settings(tmp_path):
    transformer = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "num_layers": 30,
        "in_channels": 16,
    }
    folder = write_folder(tmp_path / "anywhere", {"_class_name": "WanPipeline"}, transformer)
    source = find_source(str(folder))
    assert source.spec is not None
    assert source.spec.key == "wan21_1.3b"
    assert source.location == str(folder)
    assert video_scale(source) == SIXTEEN


def test_a_folder_with_an_unknown_model_gets_its_pipelines_defaults(source, pipeline_folder):
    assert source.spec is None
    assert source.name == str(pipeline_folder)
    assert (source.default("num_frames"), source.default("num_inference_steps")) == (81, 50)
    assert source.default("guidance_scale_2") is None
    assert video_scale(source) is None


def test_what_an_unknown_pipeline_finds_itself_has_no_default(tmp_path):
    source = find_source(str(write_folder(tmp_path / "cog", {"_class_name": "CogVideoXPipeline"}, {"num_layers": 1})))
    assert (source.default("width"), source.default("guidance_scale")) == (None, 6)


def test_a_name_that_is_neither_key_nor_folder_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'wan21_14b'.*nor is it the path of a folder"):
        find_source("wan21_14")


def test_scale_of_a_loaded_pipeline(pipe):
    assert pipeline_scale(pipe) == VideoScale(width_divisor=8, height_divisor=8, depth_divisor=4)


@pytest.mark.parametrize("size", [(16, 32, 1), (1280, 720, 81), (48, 16, 5)])
def test_whole_tokens_are_accepted(size):
    check_size(*size, SIXTEEN, positions=1024)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 64, 17), "width: expected a multiple of 16, got 100; 96 fits"),
        ((64, 7, 17), "height: expected a multiple of 16, got 7; 16 fits"),
        ((64, 0, 17), "height: expected a multiple of 16, got 0; 16 fits"),
        ((64, 64, 16), r"num_frames: expected 1 \+ a multiple of 4, got 16; 17 fits"),
        ((64, 64, -3), r"num_frames: expected 1 \+ a multiple of 4, got -3; 1 fits"),
        ((16400, 64, 17), "width: expected at most 16384, where the model's positions end, got 16400"),
        ((64, 100_000, 17), "height: expected at most 16384, where the model's positions end, got 100000"),
        ((64, 64, 4097), "num_frames: expected at most 4093, where the model's positions end, got 4097"),
        ((16384, 16384, 4093), "expected a video that fits into this machine's .* take 36837.0 GiB while they"),
    ],
    ids=["width", "height", "zero", "frames", "negative", "wide", "high", "long", "memory"],
)
def test_other_sizes_are_refused_with_the_nearest_that_fits(size, message):
    with pytest.raises(ValueError, match=message):
        check_size(*size, SIXTEEN, positions=1024)


def test_wan_wants_sides_of_16_whatever_its_tokens(pipe):
    """Before loading, and again by the pipeline, whose own check it is."""
    wrong = "width: expected a multiple of 16, got 104; 96 fits"
    with pytest.raises(ValueError, match=wrong):
        make_requests(find_source("tiny-wan-1k"), ["x"], seed=0, settings={"width": 104})
    request = replace(make_requests(find_source("tiny-wan-1k"), ["x"], seed=0, settings={})[0], width=104)
    with pytest.raises(ValueError, match=wrong):
        _check_size(pipe, request, pipeline_call(pipe))


def test_allegro_has_no_first_frame_of_its_own():
    """Before loading, and again by the pipeline."""
    request = make_requests(find_source("allegro"), ["x"], seed=0, settings={})[0]
    pipe = SimpleNamespace(
        transformer=SMALL["allegro"].make()[0], vae_scale_factor_spatial=8, vae_scale_factor_temporal=4
    )
    call = pipeline_call(AllegroPipeline)
    assert request.num_frames == 88
    _check_size(pipe, request, call)
    wrong = "num_frames: expected 0 . a multiple of 4, got 89; 88 fits"
    with pytest.raises(ValueError, match=wrong):
        make_requests(find_source("allegro"), ["x"], seed=0, settings={"num_frames": 89})
    with pytest.raises(ValueError, match=wrong):
        _check_size(pipe, replace(request, num_frames=89), call)
