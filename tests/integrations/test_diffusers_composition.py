"""PSA together with what else is done to pipelines: LoRAs, compilation, training, offloading, VAE tiling, saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import accelerate
import pytest
import torch
from diffusers import CogVideoXPipeline, DiffusionPipeline, WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from small_pipelines import (
    make_cogvideox_inputs,
    make_cogvideox_pipeline,
    make_cogvideox_transformer,
    make_video,
    make_wan_inputs,
    make_wan_pipeline,
    make_wan_transformer,
)

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import apply_psa

EVERY_TOKEN = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)}, rearrange_method="Gilbert", warmup_steps=1)
"""No approximation: the video must be that of the dense model to rounding, with one dense and two sparse steps."""

SPARSE = EVERY_TOKEN.replace(mask_ratios={1: (0, 0.3), 0: (0.3, 1)})
BOTH = pytest.mark.parametrize("make_pipe", [make_wan_pipeline, make_cogvideox_pipeline], ids=["wan", "cogvideox"])
MODELS = pytest.mark.parametrize(
    ("make_transformer", "make_inputs"),
    [(make_wan_transformer, make_wan_inputs), (make_cogvideox_transformer, make_cogvideox_inputs)],
    ids=["wan", "cogvideox"],
)


def assert_equal_to_rounding(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.std().item())


@pytest.fixture(scope="module", params=[WanPipeline, CogVideoXPipeline], ids=["wan", "cogvideox"])
def lora(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable, Path]:
    """How to make a pipeline, and the folder of a LoRA for its attention, feed-forward and output layers."""
    make_pipe = {WanPipeline: make_wan_pipeline, CogVideoXPipeline: make_cogvideox_pipeline}[request.param]
    transformer = make_pipe().transformer
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj", "proj_out"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=targets))
    folder = tmp_path_factory.mktemp("lora")
    request.param.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))
    return make_pipe, folder


def test_lora_loaded_and_fused_before_or_after_attaching(lora: tuple[Callable, Path]) -> None:
    make_pipe, folder = lora
    pipe = make_pipe()
    plain = make_video(pipe)
    pipe.load_lora_weights(folder)
    dense = make_video(pipe)
    assert (dense - plain).abs().max() > 0.01 * plain.std()

    with apply_psa(pipe, EVERY_TOKEN):
        assert_equal_to_rounding(make_video(pipe), dense)
        pipe.fuse_lora()
        torch.testing.assert_close(make_video(pipe), dense, rtol=0, atol=1e-4 * dense.std().item())
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        torch.testing.assert_close(make_video(pipe), plain, rtol=0, atol=1e-4 * plain.std().item())

        pipe.load_lora_weights(folder)
        torch.testing.assert_close(make_video(pipe), dense, rtol=0, atol=1e-4 * dense.std().item())


@MODELS
def test_compiled_after_attaching(make_transformer: Callable, make_inputs: Callable) -> None:
    transformer, inputs = make_transformer(), make_inputs()
    with torch.no_grad():
        dense = transformer(**inputs).sample
        handle = apply_psa(transformer, SPARSE.replace(warmup_steps=0))
        eager = transformer(**inputs).sample
        compiled = torch.compile(transformer, backend="eager")
        assert_equal_to_rounding(compiled(**inputs).sample, eager)
        handle.reset()
        assert_equal_to_rounding(compiled(**inputs).sample, eager)
        summary = handle.stats().summary
        assert (summary.sparse_calls, summary.dense_calls, summary.gathers) == (2, 0, 4)
        handle.remove()
        assert_equal_to_rounding(compiled(**inputs).sample, dense)
    assert handle.stats().summary.sparse_calls == 2
