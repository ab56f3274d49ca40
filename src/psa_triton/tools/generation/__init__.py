"""Prompts -> videos: find and load a model, make one video or a resumable batch, write what it was made with."""

from __future__ import annotations

from psa_triton.tools.generation.attention import DENSE, Attention, DenseParts, choose_attention, named_attention
from psa_triton.tools.generation.batch import Failure, Job, plan_jobs, run_jobs
from psa_triton.tools.generation.loading import Target, choose_device, choose_dtype, load_pipeline
from psa_triton.tools.generation.lora import Lora, find_lora
from psa_triton.tools.generation.model_configs import checkout_model_configs, configured_models
from psa_triton.tools.generation.processes import ALONE, Processes, launched_processes
from psa_triton.tools.generation.request import VideoRequest, make_requests, read_prompts
from psa_triton.tools.generation.sidecar import settings_of, surroundings, write_json
from psa_triton.tools.generation.single import Cost, GeneratedVideo, OnStep, generate_video, generate_videos, warm_up
from psa_triton.tools.generation.source import ModelSource, find_source

__all__ = [
    "ALONE",
    "DENSE",
    "Attention",
    "Cost",
    "DenseParts",
    "Failure",
    "GeneratedVideo",
    "Job",
    "Lora",
    "ModelSource",
    "OnStep",
    "Processes",
    "Target",
    "VideoRequest",
    "checkout_model_configs",
    "choose_attention",
    "choose_device",
    "choose_dtype",
    "configured_models",
    "find_lora",
    "find_source",
    "generate_video",
    "generate_videos",
    "launched_processes",
    "load_pipeline",
    "make_requests",
    "named_attention",
    "plan_jobs",
    "read_prompts",
    "run_jobs",
    "settings_of",
    "surroundings",
    "warm_up",
    "write_json",
]
