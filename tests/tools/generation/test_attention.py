import json

import pytest

from psa_triton.config import PSAConfig
from psa_triton.presets import load_preset
from psa_triton.tools.generation import DENSE, Attention, DenseParts, choose_attention, find_source


@pytest.mark.parametrize(
    ("model", "preset", "name"),
    [
        ("cogvideo_5b_lora", None, "CogVideo_5b/psa_4steps"),
        ("wan21_14b", None, "Wan2.1_14b/psa_balanced"),
        ("wan21_14b", "Wan2.1_1.3b/psa_topk", "Wan2.1_1.3b/psa_topk"),
        ("wan21_14b", "baseline", "Wan2.1_14b/baseline"),
        ("wan21_14b", "dense", "dense"),
    ],
)
def test_a_model_has_presets_and_one_of_its_own(model, preset, name):
    attention = choose_attention(find_source(model), preset, impl="reference")
    assert attention.name == name
    assert attention.config == (None if name == "dense" else load_preset(*name.split("/")))


def test_an_unknown_model_has_the_presets_of_all(source, pipe):
    assert choose_attention(source, "dense") == DENSE
    for preset in (None, "psa_balanced"):
        attention = choose_attention(source, preset)
        assert attention.name == "general/psa_balanced"
        attention.attach(pipe).remove()


def test_a_presets_file_of_ones_own_is_used(tmp_path):
    ratios = {"1": [0, 0.5], "0": [0.5, 1]}
    own = {
        "mine": {
            "default_attention": "half",
            "video_scale": {"width_divisor": 8, "height_divisor": 8, "depth_divisor": 4},
            "text_length": 0,
            "attention_configs": {
                "half": {"type": "psa", "block_size": {"m": 64, "n": 32, "tile_n": 32}, "mask_ratios": ratios}
            },
        }
    }
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps(own))  # JSON is YAML
    attention = choose_attention(find_source("wan21_14b"), "mine/half", file=file)
    assert attention.config is not None
    assert attention.config.mask_ratios == {1: (0, 0.5), 0: (0.5, 1)}
    assert attention.as_dict()["config"]["mask_ratios"] == {"1": [0, 0.5], "0": [0.5, 1]}


def test_an_unknown_preset_is_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'psa_topk'"):
        choose_attention(find_source("wan21_1.3b"), "psa_topkk")


def test_a_preset_of_the_models_own_section_is_checked_against_the_pipeline(pipe):
    own = choose_attention(find_source("wan21_14b"))
    with pytest.raises(ValueError, match="section Wan2.1_14b .* 16 x 16 pixels .* but in this pipeline it is 8 x 8"):
        own.attach(pipe)
    choose_attention(find_source("wan21_14b"), "CogVideo_5b/psa_balanced").attach(pipe).remove()


def test_what_runs_dense_reaches_the_model(pipe):
    config = PSAConfig(block_m=32, block_n=32, warmup_steps=1)
    parts = DenseParts(dense_last_steps=1, dense_layers=(0,))
    attention = Attention(name="hand", config=config, dense_parts=parts)
    assert attention.has_dense_steps
    assert attention.as_dict() | {"config": None} == {
        "preset": "hand",
        "impl": "auto",
        "config": None,
        "max_error": None,
        "min_tokens": 0,
        "dense_last_steps": 1,
        "dense_layers": [0],
    }
    with attention.attach(pipe) as handle:
        pipe(prompt="a red square", width=64, height=64, num_frames=17, num_inference_steps=3, guidance_scale=1.0)
    ran = {(record.layer, record.step): record.reason for record in handle.stats().records}
    assert ran == {
        **{(0, 0): "warm-up", (1, 0): "warm-up"},
        **{(0, 1): "dense layer", (1, 1): None},
        **{(0, 2): "last steps", (1, 2): "last steps"},
    }
    throughout = attention.without_dense_steps()
    assert not throughout.has_dense_steps
    assert throughout.dense_parts == DenseParts(dense_layers=(0,))
    assert DENSE.has_dense_steps and DENSE.without_dense_steps() == DENSE
