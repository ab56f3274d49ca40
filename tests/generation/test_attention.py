from __future__ import annotations

import json
from pathlib import Path

import pytest

from psa_triton.generation import DENSE, ModelSource, choose_attention, find_source
from psa_triton.presets import load_preset


def test_the_default_is_the_models_own_preset() -> None:
    attention = choose_attention(find_source("cogvideo_5b_lora"))
    assert attention.name == "CogVideo_5b/psa_4steps"
    assert attention.config == load_preset("CogVideo_5b", "psa_4steps")


def test_a_preset_of_another_section_can_be_borrowed(source: ModelSource) -> None:
    attention = choose_attention(source, "Wan2.1_1.3b/psa_topk")
    assert attention.config == load_preset("Wan2.1_1.3b", "psa_topk")


@pytest.mark.parametrize("name", ["dense", "baseline"])
def test_dense_attention_has_no_configuration(name: str) -> None:
    assert choose_attention(find_source("wan21_14b"), name).config is None


def test_an_unknown_model_needs_a_section_unless_it_runs_dense(source: ModelSource) -> None:
    assert choose_attention(source, "dense") == DENSE
    for preset in (None, "psa_balanced"):
        with pytest.raises(ValueError, match="give SECTION/PRESET"):
            choose_attention(source, preset)


def test_a_presets_file_of_ones_own_is_used(tmp_path: Path) -> None:
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


def test_an_unknown_preset_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'psa_topk'"):
        choose_attention(find_source("wan21_1.3b"), "psa_topkk")
