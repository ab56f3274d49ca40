"""PSA together with what else is done to pipelines: LoRAs, compilation, training, offloading, VAE tiling, saving."""

from contextlib import ExitStack

import accelerate
import pytest
import torch
from diffusers import CogVideoXPipeline, WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from small_pipelines import (
    BOTH,
    assert_equal_to_rounding,
    make_cogvideox_pipeline,
    make_video,
    make_wan_inputs,
    make_wan_pipeline,
    make_wan_transformer,
)
from torch.utils._pytree import tree_map_only

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import apply_psa

EVERY_TOKEN = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)}, rearrange_method="Gilbert", warmup_steps=1)
"""No approximation: the video must be that of the dense model to rounding, with one dense and two sparse steps."""

SPARSE = EVERY_TOKEN.replace(mask_ratios={1: (0, 0.3), 0: (0.3, 1)})


@pytest.fixture(scope="module", params=[WanPipeline, CogVideoXPipeline], ids=["wan", "cogvideox"])
def lora(request, tmp_path_factory):
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


def test_lora_loaded_and_fused_before_or_after_attaching(lora):
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


def test_later_steps_compile_nothing_anew():
    """`test_families.py` compiles whole transformers."""
    pipe = make_wan_pipeline()
    with apply_psa(pipe, SPARSE) as handle:
        eager = make_video(pipe, steps=4)
        pipe.transformer.compile_repeated_blocks(backend="eager")
        make_video(pipe, steps=2)
        handle.reset()
        with torch.compiler.set_stance("fail_on_recompile"):
            assert_equal_to_rounding(make_video(pipe, steps=4), eager)
        assert [record.step for record in handle.stats().records if record.sparse] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "compile_it",
    [
        lambda pipe: pipe.transformer.compile(backend="eager"),
        lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
        lambda pipe: setattr(pipe, "transformer", torch.compile(pipe.transformer, backend="eager")),
    ],
    ids=["in-place", "blocks", "wrapped"],
)
def test_attaching_after_compiling_is_refused(compile_it):
    pipe = make_wan_pipeline()
    compile_it(pipe)
    for target in (pipe, pipe.transformer):
        with pytest.raises(ValueError, match="its transformer is compiled already.*call apply_psa first, then compile"):
            apply_psa(target, SPARSE)


def group_offload_leaves(pipe):
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def group_offload_blocks(pipe):
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


def sequential_offload(pipe):
    """What `enable_sequential_cpu_offload` does to each model: weights are on `meta` but for their layer's forward."""
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))


def model_offload(pipe):
    """What `enable_model_cpu_offload` does, which itself insists on an accelerator."""
    hook = None
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        _, hook = accelerate.cpu_offload_with_hook(model, torch.device("cpu"), prev_module_hook=hook)


OFFLOADS = pytest.mark.parametrize(
    "offload",
    [group_offload_leaves, group_offload_blocks, sequential_offload, model_offload],
    ids=["group-leaves", "group-blocks", "sequential", "model"],
)


@OFFLOADS
@pytest.mark.parametrize(
    ("make_pipe", "attach_first"),
    [(make_wan_pipeline, True), (make_cogvideox_pipeline, False)],
    ids=["wan, attach first", "cogvideox, offload first"],
)
def test_offloading(make_pipe, offload, attach_first):
    pipe = make_pipe()
    with apply_psa(pipe, SPARSE):
        expected = make_video(pipe)
    with ExitStack() as attached:
        if attach_first:
            attached.enter_context(apply_psa(pipe, SPARSE))
        offload(pipe)
        if not attach_first:
            attached.enter_context(apply_psa(pipe, SPARSE))
        assert torch.equal(make_video(pipe), expected)


@BOTH
def test_a_saved_pipeline_has_nothing_of_psa(make_pipe, tmp_path):
    pipe = make_pipe()
    make_video(pipe)  # A tokenizer saves how it was last called.
    pipe.save_pretrained(tmp_path / "plain")
    with apply_psa(pipe, SPARSE):
        make_video(pipe)
        pipe.save_pretrained(tmp_path / "attached")
    plain, attached = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "plain", tmp_path / "attached")
    )
    assert plain == attached and len(plain) > 8


@torch.no_grad()
def test_a_model_spread_over_devices_is_laid_out_on_each(monkeypatch):
    """As accelerate spreads it, moving what comes to a block; `meta` is the other device here."""
    devices = []

    def spy(family, grids, visual, config, query, key, attn_mask):
        devices.append(key.device.type)
        return "spied on"

    def come(block, args):
        return tree_map_only(torch.Tensor, lambda x: x.to("meta"), args)

    monkeypatch.setattr("psa_triton.integrations.diffusers.call.find_layout", spy)
    transformer = make_wan_transformer()
    second = transformer.blocks[1].to("meta")
    second.register_forward_pre_hook(come)
    second.register_forward_hook(lambda block, args, out: torch.zeros(out.shape))
    with apply_psa(transformer, SPARSE.replace(warmup_steps=0)):
        transformer(**make_wan_inputs())
    assert devices == ["cpu", "meta"]
