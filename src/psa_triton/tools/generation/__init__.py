"""Prompts -> videos: find and load a model, make one video or a resumable batch, write what it was made with."""

from __future__ import annotations

from psa_triton.tools.generation.attention import DENSE, Attention, DenseParts, choose_attention, named_attention
from psa_triton.tools.generation.loading import choose_dtype, load_pipeline
from psa_triton.tools.generation.request import VideoRequest, make_requests
from psa_triton.tools.generation.single import Cost, GeneratedVideo, OnStep, generate_video, generate_videos
from psa_triton.tools.generation.source import ModelSource, find_source

__all__ = [
    "DENSE",
    "Attention",
    "Cost",
    "DenseParts",
    "GeneratedVideo",
    "ModelSource",
    "OnStep",
    "VideoRequest",
    "choose_attention",
    "choose_dtype",
    "find_source",
    "generate_video",
    "generate_videos",
    "load_pipeline",
    "make_requests",
    "named_attention",
]
