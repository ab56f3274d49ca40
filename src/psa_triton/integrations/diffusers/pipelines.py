"""Pipelines, modular ones too: their transformers, their scheduler, which one runs, and what a token stands for."""

from __future__ import annotations

import inspect
from operator import itemgetter
from typing import Any

from torch import nn

from psa_triton.integrations.diffusers.families import FAMILIES, family_name, patch_size
from psa_triton.integrations.wrappers import library, parts, unwrap
from psa_triton.presets import VideoScale

# The names that diffusers' pipelines have for the compression of their VAE.
_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor", "vae_scale_factor")
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")


def is_pipeline(target: Any) -> bool:
    """Whether it is a diffusers pipeline, of the one kind or the other."""
    return library(target) == "diffusers" and isinstance(getattr(target, "components", None), dict)


def transformers_of(pipe: Any) -> dict[str, Any]:
    """The transformers of a pipeline by name, as it holds them: wrapped perhaps.

    They are its `transformer` and `transformer_2`, and whatever else is of a known family; each once.
    """
    usual = ("transformer", "transformer_2")
    named = sorted(
        (item for item in parts(pipe) if item[0] in usual or family_name(unwrap(item[1]))), key=itemgetter(0)
    )
    first = {id(unwrap(part)): name for name, part in reversed(named)}
    return {name: part for name, part in named if first[id(unwrap(part))] == name}


def scheduler_of(pipe: Any) -> Any | None:
    """A pipeline's scheduler: its `scheduler`, else the one component that is one; None if there is none."""
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is not None:
        return scheduler
    others = [part for part in vars(pipe).values() if hasattr(part, "timesteps") and hasattr(part, "set_timesteps")]
    return others[0] if len(others) == 1 else None


def running_pipeline(transformer: nn.Module) -> Any | None:
    """The pipeline with this transformer and a scheduler whose `__call__` led here; None outside of any.

    Several pipelines may share a transformer, each with its own scheduler, and run in several threads. None of them
    tells a transformer whose call it works for, and there is no hook around a pipeline's call. The call stack is what
    knows, of every thread, and of pipelines too that PSA was never told of. `self` is all that is read.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        # Asking for the locals of any other frame might keep alive what they hold (Python before 3.13).
        if code.co_name == "__call__" and code.co_argcount > 0 and code.co_varnames[0] == "self":
            caller = frame.f_locals.get("self")
            if not isinstance(caller, nn.Module) and _runs(caller, transformer):
                return caller
        frame = frame.f_back
    return None


def _runs(caller: Any, transformer: nn.Module) -> bool:
    return any(unwrap(part) is transformer for _, part in parts(caller)) and scheduler_of(caller) is not None


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
