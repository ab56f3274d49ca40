"""The checkpoints this library knows: where they are, what they are run with, which presets belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

VaeDtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A video model and the settings it is run with unless others are asked for."""

    key: str
    """Name on the command line."""
    hub_id: str | None
    """The diffusers pipeline: a repository on the Hugging Face hub, or a folder; None for the model in this package."""
    revision: str | None = None
    """Branch of its repository; None for the main one."""
    parts: Mapping[str, tuple[str, str, str | None]] = field(default_factory=dict)
    """Components that its repository lacks, by name: the class in diffusers or transformers, another repository, and
    the folder there."""
    pipeline: str
    """Name of the pipeline class in diffusers."""
    preset_section: str
    """Section of `attention_config.yaml`."""
    preset: str | None = None
    """Preset to use; None for the section's default."""
    transformer: Mapping[str, int | str | None]
    """Entries of its transformer's diffusers config that tell it from every other: the class, the heads, ..."""
    parameters: str | None = None
    """Size of the transformer, as people name it: 14B."""
    two_transformers: bool = False
    """Whether a second transformer takes over at low noise."""
    heads_and_dim: tuple[int, int] | None = None
    """Heads, and channels of each, where the diffusers config has other names for them."""
    positions: int | None = None
    """Tokens along each side that its rotary table holds; None where positions are computed for any number."""
    sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Sizes to take times of its attention at, by name: width and height in pixels, frames."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_frames: int | None
    """Frames of a video; None of an image."""
    section_frames: int | None = None
    """Frames that it makes at once, where a video is made in sections; None for all."""
    num_inference_steps: int
    """Denoising steps."""
    guidance_scale: float | None
    """Classifier-free guidance; 1 is none; None leaves it to the pipeline, which takes no such argument."""
    guidance_scale_2: float | None = None
    """Guidance of the second (low-noise) transformer, where there are two."""
    fps: int | None
    """Frames per second of the written video; None of an image."""
    scheduler: str | None = None
    """Name of the scheduler class in diffusers; None keeps the checkpoint's."""
    timestep_spacing: str | None = None
    """How the scheduler spaces its timesteps; None keeps the checkpoint's."""
    flow_shift: float | None = None
    """Shift of the noise schedule at the default size; None keeps the checkpoint's."""
    flow_shift_480p: float | None = None
    """Shift where the shorter side has at most 480 pixels; None for the same as `flow_shift`."""
    vae_dtype: VaeDtype = "bfloat16"
    """Type the VAE runs in; the transformer and the text encoder run in the device's own choice."""
    cpu_offload: bool = False
    """Keep only the part at work on the accelerator."""
    vae_tiling: bool = False
    """Decode the video in tiles."""
    vae_slicing: bool = False
    """Decode the videos of a batch one after another."""
    lora_path: str | None = None
    """LoRA weights to put on the transformer: a file or folder, or OWNER/REPOSITORY[/FILE] on the hub."""
    timing_only: bool = False
    """The size is one to take times at: the weights were not trained on it, and its videos show little."""

    @property
    def heads(self) -> int:
        """Attention heads of the transformer."""
        return self.heads_and_dim[0] if self.heads_and_dim else int(self.transformer["num_attention_heads"] or 0)

    @property
    def dim(self) -> int:
        """Channels of a head."""
        return self.heads_and_dim[1] if self.heads_and_dim else int(self.transformer["attention_head_dim"] or 0)

    def with_weights(self, hub_id: str) -> ModelSpec:
        """The same model from another repository or folder, with everything in one place there."""
        return self if hub_id == self.hub_id else replace(self, hub_id=hub_id, revision=None, parts={})

    def is_model_of(self, transformer: Mapping[str, Any], *, two_transformers: bool) -> bool:
        """Whether a transformer of this diffusers config is this model's, alone or with a second one."""
        # One that was built and not loaded has no class name in its config. A checkpoint saved before diffusers knew
        # an entry leaves it out, which stands for None: CogVideoX-5B has no `patch_size_t`.
        config = {"_class_name": self.transformer["_class_name"], **transformer}
        same = all(config.get(key) == value for key, value in self.transformer.items())
        return same and two_transformers == self.two_transformers

    def flow_shift_at(self, width: int, height: int) -> float | None:
        """Shift of the noise schedule for a video of `width` x `height` pixels; None keeps the checkpoint's."""
        if self.flow_shift_480p is not None and min(width, height) <= 480:
            return self.flow_shift_480p
        return self.flow_shift


def _transformer(class_name: str, heads: int, dim: int, layers: int, **more: int | None) -> dict[str, int | str | None]:
    shape = {"num_attention_heads": heads, "attention_head_dim": dim, "num_layers": layers, "in_channels": 16}
    return {"_class_name": f"{class_name}Transformer3DModel", **shape, **more}


def _named(key: str, hub_id: str | None, pipeline: str, preset_section: str) -> dict[str, Any]:
    return {"key": key, "hub_id": hub_id, "pipeline": pipeline, "preset_section": preset_section}


def _run(
    width: int, height: int, *, frames: int | None = None, fps: int | None = None, steps: int, guidance: float | None
) -> dict[str, Any]:
    """How a model is run by default: an image without `frames` and `fps`."""
    size = {"width": width, "height": height, "num_frames": frames, "fps": fps}
    return {**size, "num_inference_steps": steps, "guidance_scale": guidance}


_COGVIDEOX = ModelSpec(
    **_named("cogvideo_5b", "THUDM/CogVideoX-5b", "CogVideoXPipeline", "CogVideo_5b"),
    **_run(720, 480, frames=49, fps=8, steps=50, guidance=6.0),
    parameters="5B",
    transformer=_transformer("CogVideoX", 48, 64, layers=42, patch_size_t=None),
    sizes={"cogvideo-480p": (720, 480, 49)},
    scheduler="CogVideoXDPMScheduler",
    timestep_spacing="trailing",
    cpu_offload=True,
    vae_tiling=True,
    vae_slicing=True,
)
_COGVIDEOX_1_5 = replace(
    _COGVIDEOX,
    **_named("cogvideo1.5_5b", "THUDM/CogVideoX1.5-5B", "CogVideoXPipeline", "CogVideo1.5_5b"),
    **_run(1360, 768, frames=81, fps=8, steps=50, guidance=6.0),
    transformer=_transformer("CogVideoX", 48, 64, layers=42, patch_size_t=2),
    sizes={"cogvideo15-768p": (1360, 768, 81)},
)
_COGVIDEOX_LORA = replace(
    _COGVIDEOX,
    key="cogvideo_5b_lora",
    preset="psa_4steps",
    num_inference_steps=4,
    guidance_scale=1.0,
    lora_path="GYP666/BLADE/cogvideox-5b-psa-lora/pytorch_lora_weights.safetensors",
)
_WAN21_1_3B = ModelSpec(
    **_named("wan21_1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "WanPipeline", "Wan2.1_1.3b"),
    **_run(1280, 720, frames=69, fps=16, steps=50, guidance=5.0),
    parameters="1.3B",
    transformer=_transformer("Wan", 12, 128, layers=30),
    positions=1024,
    sizes={"wan21-480p": (832, 480, 81), "wan21-720p": (1280, 720, 81)},
    scheduler="UniPCMultistepScheduler",
    flow_shift=5.0,
    flow_shift_480p=3.0,
    vae_dtype="float32",
)
_WAN21_14B = replace(
    _WAN21_1_3B,
    **_named("wan21_14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "WanPipeline", "Wan2.1_14b"),
    parameters="14B",
    transformer=_transformer("Wan", 40, 128, layers=40),
    sizes={"wan21-14b-720p": (1280, 720, 81)},
)
_WAN22_5B = ModelSpec(
    **_named("wan22_5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "WanPipeline", "Wan2.2_5B"),
    **_run(1280, 704, frames=121, fps=24, steps=50, guidance=5.0),
    parameters="5B",
    transformer=_transformer("Wan", 24, 128, layers=30, in_channels=48),
    positions=1024,
    sizes={"wan22-5b-720p": (1280, 704, 121)},
    vae_dtype="float32",
)
_WAN22_A14B = replace(
    _WAN22_5B,
    **_named("wan22_a14b", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "WanPipeline", "Wan2.2_A14B"),
    **_run(1280, 768, frames=69, fps=16, steps=40, guidance=4.0),
    parameters="14B",
    transformer=_WAN21_14B.transformer,
    two_transformers=True,
    sizes={"wan22-a14b-720p": (1280, 768, 69)},
    guidance_scale_2=3.0,
)
_TINY_WAN = ModelSpec(
    **_named("tiny-wan", None, "WanPipeline", "tiny-wan"),
    **_run(192, 192, frames=29, fps=16, steps=24, guidance=4.0),
    transformer=_transformer("FrameWan", 3, 64, layers=4, ffn_dim=768),
    sizes={"tiny-wan": (192, 192, 29)},
    vae_dtype="float32",
)
_TINY_WAN_1K = replace(  # quick to make; too few tokens for sparse attention to save anything
    _TINY_WAN,
    key="tiny-wan-1k",
    **_run(96, 96, frames=29, fps=16, steps=12, guidance=4.0),
    preset="psa_balanced",
    sizes={"tiny-wan-1k": (96, 96, 29)},
)
_TINY_WAN_16K = replace(
    _TINY_WAN,
    key="tiny-wan-16k",
    **_run(256, 256, frames=61, fps=16, steps=4, guidance=1.0),
    preset="psa_timing",
    sizes={"tiny-wan-16k": (256, 256, 61)},
    timing_only=True,
)


def _image(class_name: str, heads: int, dim: int, layers: int, **more: int) -> dict[str, int | str | None]:
    shape = {"num_attention_heads": heads, "attention_head_dim": dim, "num_layers": layers}
    return {"_class_name": f"{class_name}Transformer2DModel", **shape, **more}


_video_model = partial(ModelSpec, cpu_offload=True, vae_tiling=True)
_image_model = partial(ModelSpec, cpu_offload=True)
_OTHERS = (  # as their own pages say that they are run; never run with their real weights here
    _video_model(
        **_named("wan21_i2v_14b", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "WanImageToVideoPipeline", "Wan2.1_14b"),
        **_run(1280, 720, frames=81, fps=16, steps=50, guidance=5.0),
        transformer=_transformer("Wan", 40, 128, layers=40, in_channels=36),
        flow_shift=5.0,
        flow_shift_480p=3.0,
        vae_dtype="float32",
    ),
    _video_model(
        **_named("wan22_i2v_a14b", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "WanImageToVideoPipeline", "Wan2.2_A14B"),
        **_run(1280, 720, frames=81, fps=16, steps=40, guidance=3.5),
        transformer=_transformer("Wan", 40, 128, layers=40, in_channels=36),
        guidance_scale_2=3.5,
        two_transformers=True,
        vae_dtype="float32",
    ),
    _video_model(
        **_named("wan21_vace_14b", "Wan-AI/Wan2.1-VACE-14B-diffusers", "WanVACEPipeline", "Wan2.1_14b"),
        **_run(1280, 720, frames=81, fps=16, steps=50, guidance=5.0),
        transformer=_transformer("WanVACE", 40, 128, layers=40),
        flow_shift=5.0,
        flow_shift_480p=3.0,
        vae_dtype="float32",
    ),
    _video_model(
        **_named("wan22_animate_14b", "Wan-AI/Wan2.2-Animate-14B-Diffusers", "WanAnimatePipeline", "Wan2.2_Animate"),
        **_run(1280, 720, frames=77, fps=30, steps=20, guidance=1.0),
        transformer=_transformer("WanAnimate", 40, 128, layers=40, in_channels=36),
        vae_dtype="float32",
    ),
    _video_model(
        **_named("skyreels_v2_14b", "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers", "SkyReelsV2Pipeline", "Wan2.1_14b"),
        **_run(1280, 720, frames=121, fps=24, steps=50, guidance=6.0),
        transformer=_transformer("SkyReelsV2", 40, 128, layers=40),
        vae_dtype="float32",
    ),
    _video_model(
        **_named("hunyuan_video", "hunyuanvideo-community/HunyuanVideo", "HunyuanVideoPipeline", "HunyuanVideo"),
        **_run(1280, 720, frames=129, fps=24, steps=50, guidance=6.0),
        transformer=_transformer("HunyuanVideo", 24, 128, layers=20),
    ),
    *(
        _video_model(
            **_named(
                f"hunyuan_video_1.5_{lines}p",
                f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{lines}p_t2v",
                "HunyuanVideo15Pipeline",
                "HunyuanVideo1.5",
            ),
            **_run(width, lines, frames=121, fps=24, steps=50, guidance=None),
            transformer=_transformer("HunyuanVideo15", 16, 128, layers=54, in_channels=65, target_size=target),
        )
        for lines, width, target in ((480, 848, 640), (720, 1280, 960))
    ),
    _video_model(
        **_named("ltx_video", "Lightricks/LTX-Video", "LTXPipeline", "LTX"),
        **_run(704, 512, frames=161, fps=25, steps=50, guidance=3.0),
        transformer=_transformer("LTXVideo", 32, 64, layers=28, in_channels=128),
    ),
    _video_model(
        **_named("ltx_2", "Lightricks/LTX-2", "LTX2Pipeline", "LTX"),
        **_run(768, 512, frames=121, fps=24, steps=40, guidance=4.0),
        transformer=_transformer("LTX2Video", 32, 128, layers=48, in_channels=128),
    ),
    _video_model(
        **_named("mochi_1", "genmo/mochi-1-preview", "MochiPipeline", "Mochi1"),
        **_run(848, 480, frames=163, fps=30, steps=64, guidance=4.5),
        transformer=_transformer("Mochi", 24, 128, layers=48, in_channels=12),
    ),
    _video_model(
        **_named("framepack", "hunyuanvideo-community/HunyuanVideo", "HunyuanVideoFramepackPipeline", "FramePack"),
        **_run(1280, 720, frames=129, fps=30, steps=50, guidance=6.0),
        parts={
            "transformer": ("HunyuanVideoFramepackTransformer3DModel", "lllyasviel/FramePackI2V_HY", None),
            "image_encoder": ("SiglipVisionModel", "lllyasviel/flux_redux_bfl", "image_encoder"),
            "feature_extractor": ("SiglipImageProcessor", "lllyasviel/flux_redux_bfl", "feature_extractor"),
        },
        section_frames=33,
        transformer=_transformer("HunyuanVideoFramepack", 24, 128, layers=20),
    ),
    *(
        _video_model(
            **_named(
                f"cosmos_predict2.5_{size.lower()}",
                f"nvidia/Cosmos-Predict2.5-{size}",
                "Cosmos2_5_PredictBasePipeline",
                "Cosmos-Predict2.5",
            ),
            **_run(1280, 704, frames=93, fps=16, steps=36, guidance=7.0),
            revision="diffusers/base/post-trained",
            transformer=_transformer("Cosmos", heads, 128, layers, in_channels=17, use_crossattn_projection=True),
        )
        for size, heads, layers in (("2B", 16, 28), ("14B", 40, 36))
    ),
    _video_model(
        **_named("allegro", "rhymes-ai/Allegro", "AllegroPipeline", "Allegro"),
        **_run(1280, 720, frames=88, fps=15, steps=100, guidance=7.5),
        transformer=_transformer("Allegro", 24, 96, layers=32, in_channels=4),
        vae_dtype="float32",
    ),
    *(
        _video_model(
            **_named(
                f"kandinsky5_{size}",
                f"kandinskylab/Kandinsky-5.0-T2V-{size.title()}-sft-5s-Diffusers",
                "Kandinsky5T2VPipeline",
                "Kandinsky5",
            ),
            **_run(768, 512, frames=121, fps=24, steps=50, guidance=5.0),
            transformer={
                "_class_name": "Kandinsky5Transformer3DModel",
                "model_dim": width,
                "num_visual_blocks": blocks,
            },
            heads_and_dim=(width // dim, dim),
        )
        for size, width, dim, blocks in (("lite", 1792, 64, 32), ("pro", 4096, 128, 60))
    ),
    _video_model(
        **_named("minimax_h3", "MiniMaxAI/MiniMax-H3", "MiniMaxH3ModularPipeline", "MiniMax-H3"),
        **_run(1344, 768, frames=124, fps=24, steps=50, guidance=None),
        transformer=_transformer("MiniMaxH3", 56, 128, layers=50, in_channels=24),
        vae_tiling=False,
    ),
    _image_model(
        **_named("flux.1-dev", "black-forest-labs/FLUX.1-dev", "FluxPipeline", "image"),
        **_run(1024, 1024, steps=28, guidance=3.5),
        transformer=_image("Flux", 24, 128, layers=19, num_single_layers=38, guidance_embeds=True),
    ),
    _image_model(
        **_named("flux.2-dev", "black-forest-labs/FLUX.2-dev", "Flux2Pipeline", "image"),
        **_run(1024, 1024, steps=50, guidance=4.0),
        transformer=_image("Flux2", 48, 128, layers=8, num_single_layers=48),
    ),
    _image_model(
        **_named("qwen-image", "Qwen/Qwen-Image", "QwenImagePipeline", "image"),
        **_run(1328, 1328, steps=50, guidance=None),
        transformer=_image("QwenImage", 24, 128, layers=60),
    ),
    _image_model(
        **_named("sd3.5-large", "stabilityai/stable-diffusion-3.5-large", "StableDiffusion3Pipeline", "image"),
        **_run(1024, 1024, steps=28, guidance=3.5),
        transformer=_image("SD3", 38, 64, layers=38),
    ),
    _image_model(
        **_named("z-image-turbo", "Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", "image_turbo"),
        **_run(1024, 1024, steps=9, guidance=0.0),
        transformer={"_class_name": "ZImageTransformer2DModel", "dim": 3840, "n_layers": 30, "n_heads": 30},
        heads_and_dim=(30, 128),
    ),
)
_TINY = (_TINY_WAN, _TINY_WAN_1K, _TINY_WAN_16K)
_OF_THE_PAPER = (_COGVIDEOX, _COGVIDEOX_1_5, _COGVIDEOX_LORA, _WAN21_1_3B, _WAN21_14B, _WAN22_5B, _WAN22_A14B)


@dataclass(frozen=True, kw_only=True)
class UnderstandingSpec:
    """A model that answers questions about images and videos; it makes text, so it is none of the video models."""

    key: str
    """Name on the command line."""
    hub_id: str
    """Repository on the Hugging Face hub."""
    preset_section: str
    """Section of `attention_config.yaml`."""
    parameters: str
    """Size of the language model, as people name it."""
    heads: int
    """Query heads."""
    key_heads: int
    """Key and value heads."""
    dim: int
    """Channels of a head."""
    sizes: Mapping[str, tuple[int, int, int]]
    """Videos to take times of its attention at, by name: grid of their tokens."""


QWEN2_5_VL = UnderstandingSpec(
    key="qwen2.5-vl-7b",
    hub_id="Qwen/Qwen2.5-VL-7B-Instruct",
    preset_section="Qwen2.5-VL",
    parameters="7B",
    heads=28,
    key_heads=4,
    dim=128,
    sizes={"qwen25vl-32k": (32, 32, 32)},
)
"""Its presets are also the default of every other language model."""

MODELS: Mapping[str, ModelSpec] = MappingProxyType({spec.key: spec for spec in (*_TINY, *_OF_THE_PAPER, *_OTHERS)})
"""The known video models by key."""


GENERAL_SECTION = "general"
"""Section of `attention_config.yaml` for diffusion transformers of no known model."""

PRESET_SECTIONS: Mapping[str, str] = MappingProxyType(
    {**{key: spec.preset_section for key, spec in MODELS.items()}, QWEN2_5_VL.key: QWEN2_5_VL.preset_section}
)
"""The section of `attention_config.yaml` of every model, by key."""


def preset_section(name: str) -> str:
    """The section that a model's key stands for; any other name as it is."""
    return PRESET_SECTIONS.get(name, name)


def model_key(name: str) -> str:
    """The key that a section's name stands for, the first where several models share it; any other name as it is."""
    if name in PRESET_SECTIONS:
        return name
    return next((key for key, section in PRESET_SECTIONS.items() if section == name), name)


def recognise(
    transformer: Mapping[str, Any], *, two_transformers: bool, models: Mapping[str, ModelSpec] = MODELS
) -> ModelSpec | None:
    """The model that a transformer is of.

    Args:
        transformer: its diffusers config, with its class under `_class_name` where that is known.
        two_transformers: whether its pipeline has a second transformer for low noise.
        models: to look among; the first that fits is it.

    Returns:
        None for a transformer of no known model.
    """
    fitting = (spec for spec in models.values() if spec.is_model_of(transformer, two_transformers=two_transformers))
    return next(fitting, None)
