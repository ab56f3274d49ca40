"""What `on_levels` is told of sparse calls."""

import pytest
import torch
from small_pipelines import BOTH, TEXT_TOKENS, make_cogvideox_pipeline, make_video, make_wan_pipeline

from psa_triton.attention import sparse_attention
from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import apply_psa
from psa_triton.ordering import grid_order

CONFIG = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.5), 0: (0.5, 1)}, warmup_steps=1)


@pytest.mark.parametrize(
    ("make_pipe", "prefix", "calls_a_step"),
    [(make_wan_pipeline, 0, 2), (make_cogvideox_pipeline, TEXT_TOKENS, 1)],
    ids=["wan", "cogvideox"],
)
def test_every_sparse_call_is_told_of(make_pipe, prefix, calls_a_step):
    """Two layers and two steps, the first of them dense; guidance runs Wan twice and CogVideoX on a batch of two."""
    pipe, told = make_pipe(), []
    with apply_psa(pipe, CONFIG, on_levels=told.append) as handle:
        make_video(pipe, steps=2, guidance_scale=3.0)
    assert [(record.transformer, record.layer, record.step) for record in told] == [
        ("transformer", 0, 1),
        ("transformer", 1, 1),
    ] * calls_a_step
    blocks = -(-(prefix + 105) // 32)
    for record in told:
        assert record.config == CONFIG
        assert (record.grid, record.prefix_tokens) == ((3, 5, 7), prefix)
        batch, heads = record.densities.shape
        assert batch == 2 // calls_a_step
        assert record.levels.dtype == torch.int8
        assert record.levels.shape == (batch, heads, blocks, blocks)
        assert torch.equal(record.order.permutation, grid_order("Gilbert", (3, 5, 7)).permutation)
    sparse = [record for record in handle.stats().records if record.sparse]
    for layer, entry in enumerate(sparse):
        densities = torch.stack([record.densities.mean() for record in told if record.layer == layer])
        assert entry.density == pytest.approx(float(densities.mean()))


@BOTH
def test_the_tensors_of_a_call_are_what_it_attended_with(make_pipe):
    """Attending to them gives the layer's output, and choosing among them its levels."""
    pipe, told, outputs = make_pipe(), [], []
    module = next(module for module in pipe.transformer.modules() if hasattr(module, "processor"))
    every_token = CONFIG.replace(mask_ratios={1: (0, 1)}, warmup_steps=0)

    def keep_output(_, args, output):
        outputs.append(output if isinstance(output, torch.Tensor) else torch.cat(output[::-1], dim=1))

    module.register_forward_hook(keep_output)
    with apply_psa(pipe, every_token, on_levels=told.append):
        make_video(pipe, steps=1)
    q, k, v = told[0].qkv
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    attended = told[0].order.with_prefix(told[0].prefix_tokens).restore(attended).transpose(1, 2).flatten(2)
    with torch.no_grad():
        torch.testing.assert_close(module.to_out[0](attended), outputs[0], rtol=1e-4, atol=1e-5)
    with apply_psa(pipe, CONFIG.replace(warmup_steps=0), on_levels=told.append):
        make_video(pipe, steps=1)
    q, k, v = told[-1].qkv
    _, levels = sparse_attention(q, k, v, CONFIG.replace(use_rearrange=False), prefix_tokens=told[-1].prefix_tokens)
    assert torch.equal(levels, told[-1].levels)
