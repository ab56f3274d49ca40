"""The checkpoints of the registry made small: same classes, same config keys and values, only shapes scaled down.

Weights are random. A pipeline is made offline in a moment and saved as its hub repository holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

TEXT_DIM = 32
LAYERS = 2
_WORDS = ("<pad>", "</s>", "<unk>", "▁a", "▁red", "▁blue", "▁square", "▁moving", "▁left", "▁")
_TEXT_ENCODER = {
    "vocab_size": len(_WORDS),
    "d_model": TEXT_DIM,
    "d_kv": 16,
    "d_ff": 64,
    "num_heads": 2,
    "num_layers": 1,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}


def _tokenizer() -> T5Tokenizer:
    return T5Tokenizer(vocab=[(word, -float(rank)) for rank, word in enumerate(_WORDS)], extra_ids=0)


def _cogvideox(*, vae: dict[str, Any], transformer: dict[str, Any]) -> CogVideoXPipeline:
    return CogVideoXPipeline(
        tokenizer=_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**_TEXT_ENCODER)),
        vae=AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.7,
            **vae,
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            time_embed_dim=16,
            text_embed_dim=TEXT_DIM,
            num_layers=LAYERS,
            use_rotary_positional_embeddings=True,
            **transformer,
        ),
        scheduler=CogVideoXDDIMScheduler(
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=1.0,
        ),
    )


def make_cogvideox_5b() -> CogVideoXPipeline:
    return _cogvideox(vae={}, transformer={"sample_width": 90, "sample_height": 60, "sample_frames": 49})


def make_cogvideox_1_5_5b() -> CogVideoXPipeline:
    """Patches two latent frames deep, made by a linear layer without bias."""
    size = {"sample_width": 300, "sample_height": 300, "sample_frames": 81}
    return _cogvideox(vae={"invert_scale_latents": True}, transformer={**size, "patch_size_t": 2, "patch_bias": False})


def _wan_transformer(**changes: Any) -> WanTransformer3DModel:
    config = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": LAYERS, "text_dim": TEXT_DIM}
    return WanTransformer3DModel(**config | {"freq_dim": 32, "ffn_dim": 64} | changes)


def _wan(*, flow_shift: float, vae: dict[str, Any] | None = None, **parts: Any) -> WanPipeline:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, solver_order=2
    )
    # The default means and deviations of the latents are those of Wan2.1 and of Wan2.2 A14B.
    small_vae = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | (vae or {})
    return WanPipeline(
        tokenizer=_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(**_TEXT_ENCODER)),
        vae=AutoencoderKLWan(temperal_downsample=[False, True, True], attn_scales=[], dropout=0.0, **small_vae),
        scheduler=scheduler,
        **parts,
    )


def make_wan21() -> WanPipeline:
    """1.3B and 14B differ in nothing but shapes."""
    return _wan(flow_shift=3.0, transformer=_wan_transformer())


def make_wan22_5b() -> WanPipeline:
    """A timestep per token; a residual VAE of 16x16 pixels a latent, with 48 channels."""
    channels = 48
    vae = {
        "z_dim": channels,
        "decoder_base_dim": 4,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * channels,
        "latents_std": [1.0] * channels,
    }
    transformer = _wan_transformer(in_channels=channels, out_channels=channels)
    return _wan(flow_shift=5.0, vae=vae, transformer=transformer, transformer_2=None, expand_timesteps=True)


def make_wan22_a14b() -> WanPipeline:
    """Two transformers, for high and for low noise."""
    return _wan(flow_shift=3.0, transformer=_wan_transformer(), transformer_2=_wan_transformer(), boundary_ratio=0.875)


_MAKERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "cogvideo_5b": make_cogvideox_5b,
    "cogvideo1.5_5b": make_cogvideox_1_5_5b,
    "wan21": make_wan21,
    "wan22_5b": make_wan22_5b,
    "wan22_a14b": make_wan22_a14b,
}


def save_checkpoint(name: str, folder: Path) -> Path:
    """Save the small pipeline `name` in `folder`, if it is not there, and return where it is."""
    place = folder / name
    if not place.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _MAKERS[name]().save_pretrained(place)
    return place


def save_lora(folder: Path, *, rank: int = 4, layers: int = LAYERS, hidden: int = 64) -> Path:
    """LoRA weights for the small CogVideoX-5B, as diffusers saves them; returns the file."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(layers):
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            name = f"transformer_blocks.{layer}.attn1.{projection}"
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator)
    CogVideoXPipeline.save_lora_weights(folder, transformer_lora_layers=weights)
    return folder / "pytorch_lora_weights.safetensors"
