"""How many pixels and frames of a video a token stands for, as a pipeline has it and as a preset section says."""

from __future__ import annotations

from typing import Any

from psa_triton.integrations.diffusers.families import patch_size
from psa_triton.integrations.wrappers import unwrap
from psa_triton.presets import VideoScale


def pipeline_scale(pipe: Any) -> VideoScale:
    """The compression of a Wan or CogVideoX pipeline's VAE times the patch size of its transformer."""
    transformers = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    config = unwrap(next(part for part in transformers if part is not None)).config
    time, height, width = patch_size(config)
    return VideoScale(
        width_divisor=pipe.vae_scale_factor_spatial * width,
        height_divisor=pipe.vae_scale_factor_spatial * height,
        depth_divisor=pipe.vae_scale_factor_temporal * time,
    )


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
