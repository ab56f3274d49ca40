"""Small real pipelines with random weights, made offline: one of images, one of videos with audio."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from small_families import SMALL
from small_pipelines import make_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

WORDS = 11
"""Of `make_tokenizer`."""


def image_vae(**more: Any) -> AutoencoderKL:
    """8 pixels a latent one."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(block_out_channels=(4, 4, 4, 4), **blocks, layers_per_block=1, norm_num_groups=1, **more)


def small_t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=WORDS, d_model=32, d_kv=8, d_ff=37, num_heads=2, num_layers=1))


def make_flux() -> FluxPipeline:
    """8 pixels a latent one, 2 x 2 of these a token."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=37, num_attention_heads=2, num_hidden_layers=1, vocab_size=WORDS)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 77
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=image_vae(latent_channels=1, shift_factor=0.1, scaling_factor=1.5),
        text_encoder=CLIPTextModel(CLIPTextConfig(**sizes, pad_token_id=0, eos_token_id=1)),
        tokenizer=tokenizer,
        text_encoder_2=small_t5(),
        tokenizer_2=make_tokenizer(),
        transformer=FluxTransformer2DModel(
            **SMALL["flux"].config | dict(patch_size=1, num_layers=1, num_single_layers=1)
        ),
    )


def make_ltx2() -> DiffusionPipeline:
    """2 pixels a token, a frame a token; audio of 16 kHz. diffusers has it since 0.37."""
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline, LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    torch.manual_seed(0)
    text = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    text |= dict(num_hidden_layers=2, vocab_size=WORDS + 9, sliding_window=8)
    vision = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    vision |= dict(image_size=8, patch_size=4)
    places = dict(image_token_index=WORDS + 1, boi_token_index=WORDS + 2, eoi_token_index=WORDS + 3)
    layers = dict(latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,))
    layers |= dict(decoder_layers_per_block=(1, 1), downsample_type=("spatial",), decoder_inject_noise=(False, False))
    layers |= dict(spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,), upsample_factor=(1,))
    layers |= dict(upsample_residual=(False,), timestep_conditioning=False, patch_size=1, patch_size_t=1)
    sound = dict(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2
    )
    sound |= dict(resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0)
    sound |= dict(mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8)
    heads = dict(num_attention_heads=4, attention_head_dim=4, num_layers=1, num_learnable_registers=None)
    connectors = {f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in heads.items()}
    connectors |= dict(caption_channels=16, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_theta=10000.0)
    connectors |= dict(rope_double_precision=False, causal_temporal_positioning=False, rope_type="split")
    transformer = dict(attention_head_dim=8, cross_attention_dim=16, audio_attention_head_dim=4, rope_type="split")
    transformer |= dict(audio_cross_attention_dim=8)
    wave = dict(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2]
    )
    wave |= dict(resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000)
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLLTX2Video(**layers, encoder_causal=True, decoder_causal=False),
        audio_vae=AutoencoderKLLTX2Audio(**sound),
        text_encoder=Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, **places)
        ).eval(),
        tokenizer=make_tokenizer(),
        connectors=LTX2TextConnectors(**connectors),
        transformer=LTX2VideoTransformer3DModel(**SMALL["ltx-2"].config | transformer),
        vocoder=LTX2Vocoder(**wave),
    )
