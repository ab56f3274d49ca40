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


def make_flux() -> FluxPipeline:
    """8 pixels a latent one, 2 x 2 of these a token."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 2, "num_hidden_layers": 1}
    tokenizer, tokenizer_2 = make_tokenizer(), make_tokenizer()
    tokenizer.model_max_length = 77
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=image_vae(latent_channels=1, shift_factor=0.1, scaling_factor=1.5),
        text_encoder=CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=WORDS, pad_token_id=0, eos_token_id=1)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=WORDS, d_model=32, d_kv=8, d_ff=37, num_heads=2, num_layers=1)
        ),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
        ),
    )


def make_ltx2() -> DiffusionPipeline:
    """2 pixels a token, a frame a token; audio of 16 kHz. diffusers has it since 0.37."""
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline, LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    torch.manual_seed(0)
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    heads = {f"{kind}_connector_num_attention_heads": 4 for kind in ("video", "audio")}
    heads |= {f"{kind}_connector_attention_head_dim": 4 for kind in ("video", "audio")}
    heads |= {f"{kind}_connector_num_layers": 1 for kind in ("video", "audio")}
    heads |= {f"{kind}_connector_num_learnable_registers": None for kind in ("video", "audio")}
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            layers_per_block=(1,),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatial",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        audio_vae=AutoencoderKLLTX2Audio(
            base_channels=4,
            output_channels=2,
            ch_mult=(1,),
            num_res_blocks=1,
            attn_resolutions=None,
            in_channels=2,
            resolution=32,
            latent_channels=2,
            norm_type="pixel",
            causality_axis="height",
            dropout=0.0,
            mid_block_add_attention=False,
            sample_rate=16000,
            mel_hop_length=160,
            is_causal=True,
            mel_bins=8,
        ),
        text_encoder=Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config={**text, "num_hidden_layers": 2, "vocab_size": WORDS + 9, "sliding_window": 8},
                vision_config={**vision, "image_size": 8, "patch_size": 4},
                image_token_index=WORDS + 1,
                boi_token_index=WORDS + 2,
                eoi_token_index=WORDS + 3,
            )
        ).eval(),
        tokenizer=make_tokenizer(),
        connectors=LTX2TextConnectors(
            caption_channels=16,
            text_proj_in_factor=3,
            connector_rope_base_seq_len=32,
            rope_theta=10000.0,
            rope_double_precision=False,
            causal_temporal_positioning=False,
            rope_type="split",
            **heads,
        ),
        transformer=LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=2,
            caption_channels=16,
            rope_double_precision=False,
            rope_type="split",
        ),
        vocoder=LTX2Vocoder(
            in_channels=16,
            hidden_channels=32,
            out_channels=2,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16000,
        ),
    )
