"""Small modular pipelines of other families than Wan, with random weights, made offline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from small_families import SMALL
from small_models import WORDS, image_vae, make_flux, make_ltx2, small_t5
from small_pipelines import TEXT_DIM, make_tokenizer, make_wan_pipeline

Parts = dict[str, Any]
_SIZES = {"hidden_size": TEXT_DIM, "intermediate_size": 37, "num_attention_heads": 2, "vocab_size": WORDS}
_QWEN = _SIZES | {"num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 3}
_ROPE = {"type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}


def _part(name: str, **config: Any) -> torch.nn.Module:
    return getattr(diffusers, name)(**config)


def _transformer(kind: str, **changes: Any) -> torch.nn.Module:
    small = SMALL[kind]
    return _part(small.class_name, **small.config | changes)


def _chat_tokenizer() -> transformers.PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}" + "a " * 120
    return tokenizer


def _ltx() -> Parts:
    levels = (True, True, True, False)
    vae = dict(latent_channels=4, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, patch_size=1)
    vae |= dict(layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, decoder_inject_noise=(False,) * 5)
    vae |= dict(spatio_temporal_scaling=levels, decoder_spatio_temporal_scaling=levels)
    vae |= dict(upsample_residual=(False,) * 4, upsample_factor=(1,) * 4)
    return {
        **_t5(),
        "vae": _part("AutoencoderKLLTXVideo", **vae),
        "transformer": _transformer("ltx", caption_channels=TEXT_DIM),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _t5() -> Parts:
    return {"tokenizer": make_tokenizer(), "text_encoder": small_t5()}


def _helios() -> Parts:
    parts = dict(make_wan_pipeline().components)
    transformer = _transformer("helios", text_dim=TEXT_DIM, in_channels=16, out_channels=16)
    return parts | {"transformer": transformer, "scheduler": _part("HeliosScheduler", stages=1)}


def _z_image() -> Parts:
    return {
        "tokenizer": _chat_tokenizer(),
        "text_encoder": transformers.Qwen3Model(transformers.Qwen3Config(**_QWEN)),
        "vae": image_vae(latent_channels=4, shift_factor=0.1, scaling_factor=1.5),
        "transformer": _transformer("z-image", cap_feat_dim=TEXT_DIM),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _qwen25() -> Any:
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT_DIM}
    return transformers.Qwen2_5_VLConfig(text_config=_QWEN | {"rope_scaling": _ROPE}, vision_config=vision)


def _qwen_image() -> Parts:
    vae = dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])
    vae |= dict(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return {
        "tokenizer": _chat_tokenizer(),
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(_qwen25()),
        "vae": _part("AutoencoderKLQwenImage", **vae),
        "transformer": _transformer("qwen-image", in_channels=16, out_channels=4, joint_attention_dim=TEXT_DIM),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _hunyuan_video_15() -> Parts:
    t5 = {f"{name}_2": part for name, part in _t5().items()}
    return {
        **t5,
        "tokenizer": _chat_tokenizer(),
        "text_encoder": transformers.Qwen2_5_VLTextModel(_qwen25().text_config),
        "vae": _part(
            "AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
        ),
        "transformer": _transformer(
            "hunyuan-video-1.5", in_channels=9, text_embed_dim=TEXT_DIM, text_embed_2_dim=TEXT_DIM, num_layers=1
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _sd3() -> Parts:
    clip = transformers.CLIPTextConfig(
        **_SIZES, num_hidden_layers=2, projection_dim=TEXT_DIM, pad_token_id=0, eos_token_id=1
    )
    parts: Parts = {f"{name}_3": part for name, part in _t5().items()}
    for end in ("", "_2"):
        parts["tokenizer" + end] = make_tokenizer()
        parts["tokenizer" + end].model_max_length = 77
        parts["text_encoder" + end] = transformers.CLIPTextModelWithProjection(clip)
    return parts | {
        "vae": image_vae(
            latent_channels=4, shift_factor=0.1, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False
        ),
        "transformer": _transformer("sd-3.5", pooled_projection_dim=2 * TEXT_DIM, joint_attention_dim=TEXT_DIM),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _klein() -> Parts:
    vae = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vae |= dict(block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=1, latent_channels=4, sample_size=32)
    return {
        "tokenizer": _chat_tokenizer(),
        "text_encoder": transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_QWEN | {"num_hidden_layers": 28})),
        "vae": _part("AutoencoderKLFlux2", **vae),
        "transformer": _transformer("flux-2", in_channels=16, joint_attention_dim=3 * TEXT_DIM),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


MODULAR: Mapping[str, tuple[Callable[[], Parts], dict[str, Any]]] = {
    "FluxModularPipeline": (lambda: make_flux().components, {"width": 256, "height": 256}),
    "LTXModularPipeline": (_ltx, {"width": 256, "height": 256, "num_frames": 9}),
    "LTX2ModularPipeline": (lambda: make_ltx2().components, {"width": 32, "height": 32, "num_frames": 9}),
    "HeliosModularPipeline": (_helios, {"width": 64, "height": 64, "num_frames": 9}),
    "ZImageModularPipeline": (_z_image, {"width": 256, "height": 256}),
    "QwenImageModularPipeline": (_qwen_image, {"width": 256, "height": 256}),
    "HunyuanVideo15ModularPipeline": (_hunyuan_video_15, {"width": 256, "height": 256, "num_frames": 5}),
    "StableDiffusion3ModularPipeline": (_sd3, {"width": 256, "height": 256}),
    "Flux2KleinModularPipeline": (_klein, {"width": 256, "height": 256}),
    "Wan22ModularPipeline": (
        lambda: make_wan_pipeline(two_transformers=True).components,
        {"width": 160, "height": 160, "num_frames": 5},
    ),
}


def make_modular(name: str) -> Any:
    torch.manual_seed(0)
    make, _ = MODULAR[name]
    pipe = getattr(diffusers, name)()
    components = make()
    pipe.update_components(**{part: components[part] for part in pipe.components if part in components})
    return pipe


def save_modular(pipe: Any, folder: Path) -> None:
    """With its parts, in a folder that may be moved."""
    # Whether the index of a modular pipeline names the folder: the default of diffusers changes.
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
