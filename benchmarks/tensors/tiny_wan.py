"""Queries, keys and values of the built-in video model's own self-attention, at several denoising steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from psa_triton.integrations.diffusers import layer_count
from psa_triton.tools.evaluation.levels_record import CallSite
from psa_triton.tools.generation import (
    Attention,
    VideoRequest,
    find_source,
    generate_video,
    load_pipeline,
    make_requests,
)
from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.inspection.probe import READ_ALL, Probe
from tensors import AttentionTensors, cached

MODEL: Final = "tiny-wan"
STEPS: Final = (2, 8, 16)
"""Denoising steps recorded, counted from 0: noise, the shape is settled, details."""


def tiny_wan_cases() -> Iterator[AttentionTensors]:
    """Every layer at every step, all three heads, D = 64. The video is made once and takes a minute."""
    (request,) = make_requests(find_source(MODEL), ["a red square moving left"], seed=42, settings={})
    grid = ((request.num_frames - 1) // 4 + 1, request.height // 8, request.width // 8)
    file = cached(f"{MODEL}_steps_{'_'.join(map(str, STEPS))}", lambda: record(built_in(), request))
    tensors = load_file(file)
    for step in STEPS:
        for layer in range(len(tensors) // len("qkv") // len(STEPS)):
            q, k, v = (tensors[f"{step}.{layer}.{name}"] for name in "qkv")
            yield AttentionTensors(f"{MODEL}/step {step}/layer {layer}", q, k, v, grid)


def built_in() -> DiffusionPipeline:
    """The model's pipeline, float32 on the CPU."""
    cpu = torch.device("cpu")
    return load_pipeline(find_source(MODEL), device=cpu, dtype=torch.float32, width=None, height=None)


def record(pipe: DiffusionPipeline, request: VideoRequest, steps: tuple[int, ...] = STEPS) -> dict[str, Tensor]:
    """Make a video with dense attention and keep `{"STEP.LAYER.q": [1, H, N, D], ...}` of its prompted forwards."""
    found: dict[str, Tensor] = {}

    def keep(site: CallSite, inputs: AttentionInputs, levels: Tensor) -> None:
        for name, x in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v)):
            found[f"{site.step}.{site.layer}.{name}"] = x.float().contiguous()

    probe = Probe(range(layer_count(pipe.transformer)), steps, keep)
    generate_video(pipe, request, Attention(name="dense, tapped", config=READ_ALL), on_levels=probe)
    return found
