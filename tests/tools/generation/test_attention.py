import pytest

from psa_triton.config import PSAConfig
from psa_triton.tools.generation import DENSE, Attention, DenseParts, choose_attention, find_source


def test_an_unknown_model_has_the_presets_of_all(source, pipe):
    assert choose_attention(source, "dense") == DENSE
    for preset in (None, "psa_balanced"):
        attention = choose_attention(source, preset)
        assert attention.name == "general/psa_balanced"
        attention.attach(pipe).remove()


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
