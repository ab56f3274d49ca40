"""Sparse attention that keeps every token must give the dense model's video, whatever the token order."""

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from small_pipelines import (
    BOTH,
    assert_equal_to_rounding,
    make_cogvideox_image_pipeline,
    make_cogvideox_inputs,
    make_cogvideox_pipeline,
    make_cogvideox_transformer,
    make_image,
    make_video,
    make_wan_image_pipeline,
    make_wan_inputs,
    make_wan_pipeline,
    make_wan_vace_transformer,
)

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import apply_psa

EVERY_TOKEN = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)}, rearrange_method="Gilbert")
"""All key blocks at level 1: no approximation, so only a wrong order, grid or rotary table can change the result."""

PIPELINES = {
    "wan-two-transformers": lambda: make_wan_pipeline(two_transformers=True),
    "wan-fused": lambda: _fused(make_wan_pipeline()),
    "cogvideox-1.5": lambda: make_cogvideox_pipeline(make_cogvideox_transformer(patch_size_t=2)),
    "cogvideox-fused": lambda: _fused(make_cogvideox_pipeline()),
    "cogvideox-no-rotary": lambda: make_cogvideox_pipeline(
        make_cogvideox_transformer(use_rotary_positional_embeddings=False)
    ),
}


def _fused(pipe):
    pipe.transformer.fuse_qkv_projections()
    return pipe


@pytest.mark.parametrize("make_pipe", PIPELINES.values(), ids=PIPELINES.keys())
def test_every_token_gives_the_dense_video(make_pipe):
    pipe = make_pipe()
    dense = make_video(pipe, guidance_scale=3.0)
    with apply_psa(pipe, EVERY_TOKEN) as handle:
        sparse = make_video(pipe, guidance_scale=3.0)
    summary = handle.stats().summary
    assert summary.dense_calls == 0 and summary.sparse_calls > 0 and summary.gathers > 0
    assert_equal_to_rounding(sparse, dense)


@pytest.mark.parametrize(
    "order",
    [
        {"use_rearrange": False},
        {"rearrange_method": "STA", "tile_size": (2, 2, 4)},
        {"rearrange_method": "SemanticAware"},
        {"rearrange_method": "Hybrid"},
    ],
    ids=["no-order", "tiles", "semantic", "hybrid"],
)
def test_every_order_gives_the_dense_video(order):
    """288 tokens: enough for k-means to make more than one cluster."""
    pipe, grid = make_cogvideox_pipeline(), (4, 8, 9)
    dense = make_video(pipe, grid=grid)
    with apply_psa(pipe, EVERY_TOKEN.replace(**order)) as handle:
        sparse = make_video(pipe, grid=grid)
    assert handle.stats().summary.sparse_calls > 0
    assert_equal_to_rounding(sparse, dense)


IMAGE_PIPELINES = {
    "wan2.1": (make_wan_image_pipeline, {"max_sequence_length": 512}),
    "wan2.2-5b": (lambda: make_wan_image_pipeline(expand_timesteps=True), {}),
    "wan2.2-a14b": (lambda: make_wan_image_pipeline(two_transformers=True), {}),
    "cogvideox": (make_cogvideox_image_pipeline, {}),
}


@pytest.mark.parametrize(("make_pipe", "more"), IMAGE_PIPELINES.values(), ids=IMAGE_PIPELINES.keys())
def test_image_to_video(make_pipe, more):
    """Wan2.1's image tokens are keys of its cross-attention; Wan2.2-5B's first frame stands at timestep 0."""
    pipe, more = make_pipe(), {"image": make_image(), "guidance_scale": 3.0} | more
    dense = make_video(pipe, **more)
    with apply_psa(pipe, EVERY_TOKEN.replace(warmup_steps=1)) as handle:
        sparse = make_video(pipe, **more)
    assert {record.step: record.sparse for record in handle.stats().records} == {0: False, 1: True, 2: True}
    assert_equal_to_rounding(sparse, dense)


def test_vace_with_control_after_the_last_block():
    transformer = make_wan_vace_transformer(vace_layers=[0, 1])
    generator = torch.Generator().manual_seed(1)
    inputs = make_wan_inputs(control_hidden_states=torch.randn(1, 8, 3, 10, 14, generator=generator))
    with torch.no_grad():
        dense = transformer(**inputs).sample
        with apply_psa(transformer, EVERY_TOKEN) as handle:
            assert_equal_to_rounding(transformer(**inputs).sample, dense)
    assert [(record.layer, record.sparse) for record in handle.stats().records] == [
        (layer, True) for layer in (2, 3, 0, 1)
    ]


def test_positional_arguments():
    transformer = make_cogvideox_transformer()
    latent, text, timestep, rotary = make_cogvideox_inputs().values()
    with torch.no_grad():
        dense = transformer(latent, text, timestep, None, None, rotary, None, False)[0]
        with apply_psa(transformer, EVERY_TOKEN):
            sparse = transformer(latent, text, timestep, None, None, rotary, None, False)[0]
    assert_equal_to_rounding(sparse, dense)


STEP_CACHES = {
    "first-block": lambda pipe: FirstBlockCacheConfig(threshold=1e9),
    "pyramid-broadcast": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: int(pipe.current_timestep),
    ),
    "taylor-seer": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"\w*blocks\.\d+\.attn1"],
    ),
    "taylor-seer-lite": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32, use_lite_mode=True
    ),
}
if hasattr(diffusers, "MagCacheConfig"):  # since 0.37
    STEP_CACHES["mag"] = lambda pipe: diffusers.MagCacheConfig(
        threshold=1e9, retention_ratio=0.25, max_skip_steps=1, num_inference_steps=4, mag_ratios=[1.0] * 4
    )


@pytest.mark.parametrize("make_cache", STEP_CACHES.values(), ids=STEP_CACHES.keys())
@BOTH
def test_step_cache_sees_one_token_order(make_pipe, make_cache):
    """A step cache adds what blocks did in a dense warm-up step to the tokens of a sparse step."""
    pipe = make_pipe()
    uncached = make_video(pipe, steps=4)
    pipe.transformer.enable_cache(make_cache(pipe))
    dense = make_video(pipe, steps=4)
    assert (dense - uncached).abs().max() > 1e-3 * dense.std()
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(make_cache(pipe))
    with apply_psa(pipe, EVERY_TOKEN.replace(warmup_steps=1)) as handle:
        sparse = make_video(pipe, steps=4)
    summary = handle.stats().summary
    assert summary.dense_calls == 2 and 0 < summary.sparse_calls < 2 * 3
    assert_equal_to_rounding(sparse, dense)
