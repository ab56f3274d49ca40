"""The checkpoints of the registry made small: same classes, same config keys and values, only shapes scaled down.

Weights are random. A pipeline is made offline in a moment and saved as its hub repository holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan, CogVideoXDDIMScheduler, CogVideoXPipeline, WanPipeline
from small_pipelines import make_cogvideox_pipeline, make_cogvideox_transformer, make_wan_pipeline, make_wan_transformer


def _cogvideox(vae: dict[str, Any], **transformer: Any) -> CogVideoXPipeline:
    whole = {"in_channels": 16, "out_channels": 16, "max_text_seq_length": 226}
    pipe = make_cogvideox_pipeline(make_cogvideox_transformer(**whole, **transformer))
    pipe.vae = AutoencoderKLCogVideoX.from_config(pipe.vae.config, latent_channels=16, scaling_factor=0.7, **vae)
    pipe.scheduler = CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=1.0,
    )
    return pipe


def _wan(flow_shift: float, **how: Any) -> WanPipeline:
    pipe = make_wan_pipeline(**how)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=flow_shift)
    return pipe


def _wan22_5b() -> WanPipeline:
    """A timestep per token; a residual VAE of 16x16 pixels a latent, with 48 channels."""
    channels = 48
    transformer = make_wan_transformer(in_channels=channels, out_channels=channels)
    pipe = _wan(5.0, transformer=transformer, expand_timesteps=True)
    size = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": channels, "in_channels": 12, "out_channels": 12}
    size |= {"patch_size": 2, "scale_factor_spatial": 16, "scale_factor_temporal": 4}
    moments = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    pipe.vae = AutoencoderKLWan.from_config(pipe.vae.config, is_residual=True, **size, **moments)
    return pipe


def _wan22_a14b() -> WanPipeline:
    """Two transformers, for high and for low noise."""
    pipe = _wan(3.0, two_transformers=True)
    pipe.register_to_config(boundary_ratio=0.875)
    return pipe


_MAKERS = {
    "cogvideo_5b": lambda: _cogvideox({}, sample_width=90, sample_height=60, sample_frames=49),
    # Patches two latent frames deep, made by a linear layer without bias.
    "cogvideo1.5_5b": lambda: _cogvideox(
        {"invert_scale_latents": True},
        **{"sample_width": 300, "sample_height": 300, "sample_frames": 81, "patch_size_t": 2, "patch_bias": False},
    ),
    "wan21": lambda: _wan(3.0),  # 1.3B and 14B differ in nothing but shapes
    "wan22_5b": _wan22_5b,
    "wan22_a14b": _wan22_a14b,
}


def save_checkpoint(name: str, folder: Path) -> Path:
    """Save the small pipeline `name` in `folder`, if it is not there, and return where it is."""
    place = folder / name
    if not place.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _MAKERS[name]().save_pretrained(place)
    return place


def save_lora(folder: Path, *, rank: int = 4, hidden: int = 64) -> Path:
    """LoRA weights for the small CogVideoX-5B, as diffusers saves them; returns the file."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(2):
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            name = f"transformer_blocks.{layer}.attn1.{projection}"
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator)
    CogVideoXPipeline.save_lora_weights(folder, transformer_lora_layers=weights)
    return folder / "pytorch_lora_weights.safetensors"
