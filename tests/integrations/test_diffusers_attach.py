"""Attaching and detaching: what is recognised, what is refused, and that nothing is left behind."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from small_pipelines import (
    BOTH,
    SPARSE,
    TEXT_TOKENS,
    is_clean,
    make_cogvideox_inputs,
    make_cogvideox_pipeline,
    make_cogvideox_transformer,
    make_video,
    make_wan_inputs,
    make_wan_transformer,
)

from psa_triton.integrations.diffusers import apply_psa
from psa_triton.presets import load_preset


def test_context_manager_detaches_after_an_error():
    transformer = make_wan_transformer()
    with pytest.raises(KeyError), apply_psa(transformer, SPARSE):
        raise KeyError
    assert is_clean(transformer)


def wan_1_3b():
    """A real checkpoint's transformer without its weights."""
    with torch.device("meta"):
        return WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)


@pytest.mark.parametrize(
    ("make", "preset", "section"),
    [
        *((make_cogvideox_pipeline, preset, "general") for preset in (None, "psa_budget")),
        (make_cogvideox_pipeline, "CogVideo_5b/psa_4steps", "CogVideo_5b"),
        *((wan_1_3b, preset, "Wan2.1_1.3b") for preset in (None, "psa_topk")),
    ],
)
def test_presets_are_of_the_section_named_or_recognised_or_general(make, preset, section):
    with apply_psa(make(), preset, scheduler=UniPCMultistepScheduler()) as handle:
        assert handle.config == load_preset(section, preset and preset.rpartition("/")[2])
    with pytest.raises(ValueError, match=rf"{section}\.attention_configs: unknown preset 'psa_5steps'"):
        apply_psa(make(), f"{section}/psa_5steps")


@BOTH
def test_dense_preset_runs_everything_dense(make_pipe):
    pipe = make_pipe()
    dense = make_video(pipe)
    with apply_psa(pipe, "Wan2.1_14b/baseline") as handle:
        assert torch.equal(make_video(pipe), dense)
    assert handle.config is None
    assert {record.reason for record in handle.stats().records} == {"dense preset"}
    assert handle.stats().summary.gathers == 0


def test_attention_backend_reaches_the_dense_processor():
    transformer = make_wan_transformer()
    dense = transformer.blocks[0].attn1.processor
    with apply_psa(transformer, SPARSE):
        transformer.set_attention_backend("native")
        assert dense._attention_backend == "native"
        transformer.reset_attention_backend()
        assert dense._attention_backend is None


@pytest.mark.parametrize("biased", [False, True], ids=["padding", "bias"])
def test_a_mask_of_padding_is_exact_and_sparse_and_any_other_dense(biased):
    transformer = make_cogvideox_transformer()
    mask = torch.zeros(2, 1, TEXT_TOKENS + 105)
    mask[:, :, -40:] = -1e4
    mask[:, :, 0] = -0.5 if biased else 0.0
    inputs = make_cogvideox_inputs(attention_kwargs={"attention_mask": mask})
    every_token = SPARSE.replace(mask_ratios={1: (0, 1)})
    with torch.no_grad():
        dense = transformer(**inputs).sample
        with apply_psa(transformer, every_token) as handle:
            torch.testing.assert_close(transformer(**inputs).sample, dense, rtol=1e-5, atol=1e-6)
    reason = "attention mask" if biased else None
    assert [(r.layer, r.sparse, r.reason) for r in handle.stats().records] == [
        (0, not biased, reason),
        (1, not biased, reason),
    ]


def test_attention_called_after_a_forward_knows_nothing_of_it():
    transformer = make_wan_transformer()
    attn, x = transformer.blocks[0].attn1, torch.ones(1, 105, 64)
    with torch.no_grad():
        dense, video = attn(x), transformer(**make_wan_inputs()).sample
        with apply_psa(transformer, SPARSE) as handle:
            transformer(**make_wan_inputs())
            handle.reset()
            assert torch.equal(attn(x), dense)
            # `forward` called directly passes by every hook of the transformer: tokens stay in place as well.
            assert torch.equal(transformer.forward(**make_wan_inputs()).sample, video)
    assert {record.reason for record in handle.stats().records} == {"outside a transformer forward"}
