"""Attaching and detaching: names, configurations, what is refused, and that nothing is left behind."""

import copy
import importlib
import inspect

import pytest
import small_language_models as small
import torch
from programs import python
from small_language_models import logits
from transformers import (
    AttentionInterface,
    BartConfig,
    BartForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import psa_triton
from psa_triton import PSAConfig, load_preset
from psa_triton.integrations.transformers import apply_psa, register

SPARSE = PSAConfig(
    block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 0: (0.3, 1)}, importance="antidiagonal", use_rearrange=False
)


def implementations(model):
    parts = {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    return {name: module.config._attn_implementation for name, module in parts.items()}


@pytest.mark.parametrize("before", ["sdpa", "eager", "psa"])
@pytest.mark.parametrize("make", [small.llama, small.qwen2_5_vl], ids=["llama", "qwen2.5-vl"])
def test_remove_leaves_nothing_behind(make, before):
    model = small.make_model(make)
    model.set_attn_implementation(before)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    names, config = implementations(model), model.config.to_dict()
    handle = apply_psa(model, SPARSE)
    assert implementations(model) != names or before == "psa"
    handle.remove()
    handle.remove()
    assert implementations(model) == names
    assert model.config.to_dict() == config
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


def test_an_implementation_set_in_the_meantime_stays():
    model = small.make_model(small.llama)
    with apply_psa(model, SPARSE):
        model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_a_vision_tower_keeps_its_attention():
    model = small.make_model(small.qwen2_5_vl)
    with apply_psa(model, SPARSE) as handle:
        logits(model, small.qwen_video_inputs())
        assert implementations(model) == {
            "": "sdpa",
            "model": "sdpa",
            "model.visual": "sdpa",
            "model.language_model": "psa",
        }
        assert {record.part for record in handle.stats().records} == {"text"}


def test_vision_layers_that_are_told_to_run_psa_run_dense():
    model = small.make_model(small.qwen2_5_vl)
    inputs = small.qwen_video_inputs()
    dense = logits(model, inputs)
    model.set_attn_implementation("psa")
    with apply_psa(model, PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)}, use_rearrange=False)) as handle:
        torch.testing.assert_close(logits(model, inputs), dense, rtol=1e-5, atol=2e-5)
        other = [record for record in handle.stats().records if record.part == "other"]
    assert {record.layer for record in other} == {0, 1}
    assert {(record.sparse, record.reason) for record in other} == {(False, "not causal")}


class TestNames:
    def test_register_twice(self):
        register()
        register()
        assert AttentionInterface().valid_keys().count("psa") == 1

    @pytest.mark.parametrize("named", ["psa", {"text_config": "psa"}], ids=["everywhere", "text"])
    def test_from_pretrained(self, named, tmp_path):
        small.make_model(small.qwen2_5_vl).save_pretrained(tmp_path)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=named).eval()
        assert model.config.text_config._attn_implementation == "psa"
        assert model.config.vision_config._attn_implementation == ("psa" if named == "psa" else "sdpa")
        inputs = small.qwen_video_inputs()
        assert not torch.equal(logits(model, inputs, psa_config=SPARSE), logits(model, inputs))

    def test_set_attn_implementation_runs_the_default_preset(self):
        model = small.make_model(small.llama)
        inputs = small.text_inputs(900)
        with apply_psa(model, "Qwen2.5-VL/psa_balanced") as handle:
            expected = logits(model, inputs)
            assert handle.stats().summary.sparse_calls == 2
        assert not torch.equal(logits(model, inputs), expected)
        model.set_attn_implementation("psa")
        assert torch.equal(logits(model, inputs), expected)

    def test_nothing_of_it_is_saved(self, tmp_path):
        model = small.make_model(small.qwen2_5_vl)
        model.save_pretrained(tmp_path / "plain")
        with apply_psa(model, SPARSE):
            model.save_pretrained(tmp_path / "attached")
        names = sorted(file.name for file in (tmp_path / "plain").iterdir())
        assert names == sorted(file.name for file in (tmp_path / "attached").iterdir())
        assert "model.safetensors" in names and "config.json" in names
        for name in names:
            assert (tmp_path / "attached" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


class TestConfigurations:
    def test_default_is_that_of_qwen2_5_vl(self):
        model = small.make_model(small.llama)
        with apply_psa(model) as handle:
            assert handle.config == load_preset("Qwen2.5-VL", "psa_balanced")
        with apply_psa(model, "psa_balanced") as handle:
            assert handle.config == load_preset("Qwen2.5-VL", "psa_balanced")
        with apply_psa(model, "tiny-wan/psa_balanced") as handle:
            assert handle.config == load_preset("tiny-wan", "psa_balanced")
        with apply_psa(model, "baseline") as handle:
            assert handle.config is None
            logits(model)
            assert handle.stats().summary.dense_reasons == {"dense preset": 2}

    @pytest.mark.parametrize("preset", ["psa_text", "psa_budget"])
    def test_other_presets_of_the_section_run_sparse(self, preset):
        model = small.make_model(small.llama)
        with apply_psa(model, preset) as handle:
            assert torch.isfinite(logits(model, small.text_inputs(900))).all()
            summary = handle.stats().summary
        assert summary.sparse_calls == 2
        assert 0 < summary.prefill_density < 1

    def test_two_models_in_one_process(self):
        inputs = small.text_inputs()
        one, other, plain = (small.make_model(small.llama) for _ in range(3))
        dense = logits(plain, inputs)
        coarse = SPARSE.replace(mask_ratios={1: (0, 0.1), 0: (0.1, 1)})
        with apply_psa(one, SPARSE) as of_one, apply_psa(other, coarse, dense_layers=[0]) as of_other:
            results = [logits(model, inputs) for model in (one, other, plain, one)]
        assert torch.equal(results[2], dense)
        assert torch.equal(results[0], results[3])
        assert not torch.equal(results[0], results[1])
        assert of_one.stats().summary.sparse_calls == 4
        assert (of_other.stats().summary.sparse_calls, of_other.stats().summary.dense_calls) == (1, 1)
        assert of_one.stats().summary.sparse_density > of_other.stats().summary.sparse_density

    @pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision"])
    def test_one_call_may_have_its_own(self, family):
        inputs = {
            "llama": small.text_inputs,
            "qwen2_5_vl": small.qwen_video_inputs,
            "qwen3_vl": small.qwen3_video_inputs,
            "internvl": small.internvl_image_inputs,
            "llava_onevision": small.llava_video_inputs,
        }[family]()
        model = small.make_model(getattr(small, family))
        coarse = SPARSE.replace(mask_ratios={1: (0, 0.1), 0: (0.1, 1)})
        with apply_psa(model, coarse):
            expected = logits(model, inputs)
        with apply_psa(model, SPARSE) as handle:
            before = logits(model, inputs)
            handle.reset()
            assert torch.equal(logits(model, inputs, psa_config=coarse), expected)
            density = handle.stats().summary.sparse_density
            handle.reset()
            assert torch.equal(logits(model, inputs), before)
            assert density < handle.stats().summary.sparse_density

    def test_rearranging_by_place_does_not_matter_where_no_place_is_known(self):
        model = small.make_model(small.llama)
        with apply_psa(model, SPARSE):
            expected = logits(model)
        with apply_psa(model, SPARSE.replace(use_rearrange=True, rearrange_method="Gilbert")):
            assert torch.equal(logits(model), expected)


def test_decoder_of_an_encoder_decoder():
    """Its causal layers run sparse; its cross-attention does not, nor the encoder, which shares its configuration."""
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    both = {f"{end}_{name}": size for end in ("encoder", "decoder") for name, size in sizes.items()}
    config = BartConfig(vocab_size=96, d_model=32, **both)
    model = small.make_model(lambda: BartForConditionalGeneration(config))
    inputs = small.text_inputs() | {"decoder_input_ids": small.text_inputs(200, seed=5)["input_ids"]}
    dense = logits(model, inputs)
    with apply_psa(model, PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)}, use_rearrange=False)) as handle:
        torch.testing.assert_close(logits(model, inputs), dense, rtol=1e-5, atol=2e-5)
        calls = {(record.part, record.queries, record.keys, record.reason) for record in handle.stats().records}
    assert calls == {("text", 200, 200, None), ("text", 200, 300, "not causal"), ("other", 300, 300, "not causal")}


def test_a_static_cache_beside_a_bias_by_position():
    """T5's bias covers the places of the cache that are empty yet."""
    config = T5Config(vocab_size=96, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = small.make_model(lambda: T5ForConditionalGeneration(config))
    prompt = {"input_ids": small.text_inputs(50)["input_ids"], "decoder_input_ids": small.text_inputs(7)["input_ids"]}
    length = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    static = {"cache_implementation": "static", "disable_compile": True}
    expected = model.generate(**prompt, **length)
    with apply_psa(model, "dense"):
        assert torch.equal(model.generate(**prompt, **length, **static), expected)


@pytest.mark.parametrize("make", [small.llama, small.gemma2, small.gpt_oss], ids=["llama", "gemma2", "gpt-oss"])
def test_attention_of_a_class_of_ones_own(make):
    """It is known by the class that it is made from, whose eager attention it has."""
    model = small.make_model(make)
    dense = logits(model)
    attention = model.model.layers[0].self_attn
    attention.__class__ = type("Fast", (type(attention),), {"__module__": __name__})
    with apply_psa(model, "dense") as handle:
        torch.testing.assert_close(logits(model), dense, rtol=1e-5, atol=2e-5)
    assert {record.layer for record in handle.stats().records} == {0, 1}


def test_two_models_with_one_configuration_are_told_apart_or_refused():
    config = small.llama().config
    first, second = LlamaForCausalLM(config), LlamaForCausalLM(config)
    other = LlamaForCausalLM(copy.deepcopy(config))
    with apply_psa(first, SPARSE), apply_psa(other, SPARSE), pytest.raises(ValueError, match=r"copy.deepcopy\(config"):
        apply_psa(second, SPARSE)
    with apply_psa(second, SPARSE):
        assert first.config._attn_implementation == "psa"


def test_a_tower_in_the_decoder_keeps_its_attention():
    """GIT's decoder holds its vision tower, and attends by code of its own."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 32}
    config = GitConfig(vocab_size=96, **sizes, vision_config=sizes | {"image_size": 32, "patch_size": 8})
    model = small.make_model(lambda: GitForCausalLM(config))
    model.git.image_encoder.set_attn_implementation("eager")
    before = implementations(model)
    with pytest.raises(ValueError, match="expected text layers that take their attention from"):
        apply_psa(model)
    assert implementations(model) == before and "eager" in before.values()


class TestOneNameForBothLibraries:
    @pytest.mark.parametrize("module", ["diffusers", "transformers"])
    def test_takes_all_that_either_takes(self, module):
        """The first argument goes by the name that fits."""
        both = dict(inspect.signature(psa_triton.apply_psa).parameters)
        one = importlib.import_module(f"psa_triton.integrations.{module}").apply_psa
        for name, parameter in list(inspect.signature(one).parameters.items())[1:]:
            assert both[name].default == parameter.default, name

    def test_no_library_is_imported_that_is_not_needed(self):
        script = (
            "import sys; loaded = lambda: sorted({'diffusers', 'transformers'} & set(sys.modules));"
            "import psa_triton.integrations.attach; print(loaded());"
            "import psa_triton.integrations.transformers; print(loaded())"
        )
        done = python("-c", script)
        assert done.stdout.splitlines() == ["[]", "['transformers']"]
