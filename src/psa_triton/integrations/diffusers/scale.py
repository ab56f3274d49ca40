"""How many pixels and frames of a video a token stands for, as a pipeline has it and as a preset section says."""

from __future__ import annotations

from typing import Any

from psa_triton.integrations.diffusers.families import FAMILIES, family_name, patch_size
from psa_triton.integrations.diffusers.pipelines import transformers_of
from psa_triton.integrations.wrappers import unwrap
from psa_triton.presets import VideoScale

# The names that diffusers' pipelines have for the compression of their VAE.
_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor", "vae_scale_factor")
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")


def pipeline_scale(pipe: Any) -> VideoScale:
    """The compression of a pipeline's VAE times the patch size of its transformer; of images a frame is a token deep.

    Raises:
        ValueError: the pipeline tells no compression.
    """
    transformer = unwrap(next(iter(transformers_of(pipe).values())))
    time, height, width = patch_size(transformer.config)
    packed = FAMILIES[family_name(transformer) or ""].packed
    spatial, temporal = (
        next((getattr(pipe, name) for name in names if hasattr(pipe, name)), None) for names in (_SPATIAL, _TEMPORAL)
    )
    if spatial is None:
        raise ValueError(f"pipe: expected a pipeline that tells its VAE's compression, got {type(pipe).__name__}")
    return VideoScale(
        width_divisor=spatial * packed * width,
        height_divisor=spatial * packed * height,
        depth_divisor=(temporal or 1) * time,
    )


def spare_frames(transformer: str) -> int:
    """Frames of a video beyond whole tokens, by the class of its transformer; 1 for an unknown one."""
    family = FAMILIES.get(transformer)
    return 1 if family is None else family.spare_frames


def check_video_scale(pipe: Any, section: str, expected: VideoScale) -> None:
    """Check what a section of a presets file says of its own model against the pipeline.

    Raises:
        ValueError: they differ.
    """
    found = pipeline_scale(pipe)
    if found != expected:
        raise ValueError(
            f"video_scale: section {section} of the presets file says {_words(expected)}, but in this pipeline it is "
            f"{_words(found)}; correct the section, or borrow another's preset (SECTION/PRESET)"
        )


def _words(scale: VideoScale) -> str:
    return f"{scale.width_divisor} x {scale.height_divisor} pixels and {scale.depth_divisor} frames a token"
