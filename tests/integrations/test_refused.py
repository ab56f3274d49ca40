"""What cannot be attached, or not so: each is named, and leaves the model as it was."""

import pytest
import small_language_models as small
import torch
from diffusers import AutoencoderKLWan
from peft import LoraConfig, PeftMixedModel, get_peft_model
from small_pipelines import SPARSE, is_clean, make_cogvideox_transformer, make_wan_pipeline, make_wan_transformer
from torch import nn
from transformers import BloomConfig, BloomForCausalLM

from psa_triton import PSAConfig, apply_psa
from psa_triton.config import Reuse
from psa_triton.integrations import diffusers, transformers

# PEFT's own use of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CAUSAL = SPARSE.replace(use_rearrange=False)
WARM = SPARSE.replace(warmup_steps=2)
BUDGETS = PSAConfig(mask_mode="budget", block_m=32, block_n=32)
ROWS = BUDGETS.replace(budget_table=[{"start": start, "budgets": [0.4, 0.6]} for start in (0, 0.5)])
THREE_LAYERS = BUDGETS.replace(budget_table=[{"start": 0, "budgets": [0.2, 0.3, 0.4]}])
ONCE = BUDGETS.replace(reuse=Reuse(refresh_every=100))
VIDEO_CLASSES = "expected a transformer of class WanTransformer3DModel, WanVACETransformer3DModel, Cog"


def llama():
    return small.make_model(small.llama)


def with_lora(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def vae():
    return AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def pipeline_with(transformer):
    pipe = make_wan_pipeline()
    pipe.transformer = transformer
    return pipe


OPTIONS = [
    ({"impl": "cuda"}, "impl: expected 'auto' or one of reference, .* got 'cuda'"),
    ({"impl": None}, "impl: expected 'auto' or one of reference, .* got None"),
    ({"min_tokens": "x"}, "min_tokens: expected an int, got str"),
    ({"min_tokens": 1.5}, "min_tokens: expected an int, got float"),
    ({"min_tokens": -1}, "min_tokens: expected 0 or more, got -1"),
    ({"dense_layers": "0"}, "dense_layers: expected a collection of ints, got '0'"),
    ({"dense_layers": 1}, "dense_layers: expected a collection of ints, got 1"),
]
DIFFUSION = [
    (SPARSE, {"scheduler": 3}, "scheduler: expected a diffusers scheduler with timesteps, got int"),
    (SPARSE, {"dense_last_steps": -1}, "dense_last_steps: expected 0 or more, got -1"),
    (SPARSE, {"dense_last_steps": 1.5}, "dense_last_steps: expected an int, got float"),
    (SPARSE, {"dense_layers": [0, 2, 5]}, r"dense_layers: expected indexes from 0 to 1, got \[2, 5\]"),
    (SPARSE, {"dense_layers": [-1]}, r"dense_layers: expected indexes from 0 to 1, got \[-1\]"),
    (SPARSE, {"dense_last_steps": 1}, "scheduler: expected one, as .* dense_last_steps = 1.* pass scheduler="),
    (WARM, {}, "scheduler: expected one, as warmup_steps = 2 .* pass scheduler="),
    (ROWS, {}, "the 2 rows of budget_table"),
    (THREE_LAYERS, {}, "budget_table: expected 2 budgets in each row.*got 3"),
    (ONCE, {}, "scheduler: expected one"),
    ("dense", {"max_error": 0.1}, "max_error: expected None with dense attention"),
    ({"block_m": 32}, {}, "config_or_preset: expected a PSAConfig.* got dict"),
]
LANGUAGE = [
    (7, {}, "config_or_preset: expected a PSAConfig"),
    ("psa_balance", {}, "did you mean 'psa_balanced'"),
    ("Qwen/psa_balanced", {}, "unknown model section 'Qwen'"),
    (CAUSAL, {"dense_layers": [2]}, r"dense_layers: expected some of \[0, 1\], got \[2\]"),
    (SPARSE.replace(attn_impl="new_mask_type"), {}, "'new_mask_type' has no causal mask"),
    (SPARSE.replace(rearrange_method="SemanticAware"), {}, "needs tokens in their own order, got 'SemanticAware'"),
    (CAUSAL, {"scheduler": object()}, "scheduler: belongs to diffusion models, and this is a LlamaForCausalLM"),
    (CAUSAL, {"dense_last_steps": 1}, "dense_last_steps: belongs to diffusion models"),
    (CAUSAL, {"on_levels": print}, "on_levels: belongs to diffusion models"),
]
CALLS = [
    *((make, CAUSAL, *option) for make in (make_wan_transformer, llama) for option in OPTIONS),
    *((make_wan_transformer, *call) for call in DIFFUSION),
    (make_cogvideox_transformer, *DIFFUSION[6]),
    *((llama, *call) for call in LANGUAGE),
]


@pytest.mark.parametrize(("make", "config", "options", "message"), CALLS, ids=str)
def test_how_it_cannot_be_attached(make, config, options, message):
    model = make()
    with pytest.raises((TypeError, ValueError), match=message):
        apply_psa(model, config, **options)
    assert is_clean(model)
    apply_psa(model, CAUSAL).remove()


def test_options_of_diffusion_models_name_the_model_in_the_wrapper():
    with pytest.raises(ValueError, match="on_levels: belongs to diffusion models, and this is a LlamaForCausalLM"):
        apply_psa(with_lora(llama()), CAUSAL, on_levels=print)


class Around(nn.Module):
    """A module of one's own that holds a model."""

    def __init__(self, model):
        super().__init__()
        self.first = nn.Linear(1, 1)
        self.inside = nn.ModuleDict({"dit": model})


INSIDE = r"got Around; there is one in it: pass its `inside.dit`"
NO_MODEL = "model: expected a model or pipeline of diffusers or tr"
TARGETS = {
    "a part": (apply_psa, lambda: llama().model.layers[0].self_attn, NO_MODEL),
    "a head": (apply_psa, lambda: llama().lm_head, NO_MODEL),
    "a configuration": (apply_psa, lambda: llama().config, NO_MODEL),
    "around a transformer": (apply_psa, lambda: Around(make_wan_transformer()), INSIDE),
    "around a language model": (apply_psa, lambda: Around(llama()), INSIDE),
    "adapters of many kinds": (
        *(apply_psa, lambda: PeftMixedModel(make_wan_transformer(), LoraConfig(target_modules=["to_q"]))),
        "got PeftMixedModel; there is one in it: pass its `base_model.model`",
    ),
    "a VAE": (apply_psa, vae, f"{VIDEO_CLASSES}.*got Autoencoder"),
    "a pipeline of a VAE": (apply_psa, lambda: pipeline_with(vae()), f"{VIDEO_CLASSES}.*got Autoencoder"),
    "a pipeline of none": (
        *(apply_psa, lambda: pipeline_with(None)),
        "expected a pipeline with a transformer, got WanPipeline",
    ),
    "diffusers: a module": (diffusers.apply_psa, lambda: nn.Linear(2, 2), VIDEO_CLASSES),
    "diffusers: none": (diffusers.apply_psa, lambda: None, VIDEO_CLASSES),
    "diffusers: text": (diffusers.apply_psa, lambda: "pipe", VIDEO_CLASSES),
    "diffusers: around": (diffusers.apply_psa, lambda: Around(make_wan_transformer()), f"{VIDEO_CLASSES}.*{INSIDE}"),
    "diffusers: a language model": (
        *(diffusers.apply_psa, lambda: with_lora(llama())),
        "got LlamaForCausalLM of transformers; pass it to psa_triton.app",
    ),
    "transformers: a module": (
        *(transformers.apply_psa, lambda: nn.Linear(1, 1)),
        "model: expected a transformers PreTrainedModel, got Linear",
    ),
    "transformers: around": (transformers.apply_psa, lambda: Around(llama()), INSIDE),
    "transformers: a pipeline": (
        *(transformers.apply_psa, make_wan_pipeline),
        "got WanPipeline of diffusers; pass it to psa_triton.apply_psa",
    ),
    "transformers: attention of its own": (
        *(transformers.apply_psa, lambda: BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=32, n_layer=1))),
        "expected text layers that take their attention from transformers'",
    ),
}


@pytest.mark.parametrize(("attach", "make", "message"), TARGETS.values(), ids=TARGETS)
def test_what_cannot_be_attached(attach, make, message):
    target = make()
    with pytest.raises((TypeError, ValueError), match=message) as told:
        attach(target, CAUSAL)
    assert message.startswith(VIDEO_CLASSES) or "CogVideoX" not in str(told.value), "classes that do not matter"
    assert not isinstance(target, torch.nn.Module) or is_clean(target)


@pytest.mark.parametrize("given", [{"block_m": 32}, "psa_balanced"], ids=["dict", "name"])
def test_a_call_with_something_else_than_a_configuration(given):
    model = llama()
    with apply_psa(model, CAUSAL), pytest.raises(TypeError, match="psa_config: expected a PSAConfig"):
        small.logits(model, psa_config=given)
