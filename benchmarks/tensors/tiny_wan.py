"""Queries, keys and values of the built-in video model's own self-attention, at several denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import WanPipeline
from safetensors import safe_open
from torch import Tensor

from psa_triton.tools.generation import DENSE, VideoRequest, find_source, generate_video, load_pipeline, make_requests
from tensors.bundle import AttentionTensors, cached
from tensors.rotary import rotate

PROMPT: Final = "a red square moving left"
SEED: Final = 42
STEPS: Final = (1, 4, 8)
"""Denoising steps recorded, counted from 0: noise, the shape is settled, details."""


class RecordingProcessor:
    """Keeps what a Wan self-attention attends with, then lets the processor it stands in for attend.

    Args:
        dense: the processor it stands in for.
        keep: called with `q, k, v`, `[B, H, N, D]`, rotary embedding applied.
    """

    def __init__(self, dense: Any, keep: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        self._dense = dense
        self._keep = keep

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if rotary_emb is None:
            raise ValueError("rotary_emb: expected the tables that Wan's self-attention gets, got None")
        projected = (
            attn.norm_q(attn.to_q(hidden_states)),
            attn.norm_k(attn.to_k(hidden_states)),
            attn.to_v(hidden_states),
        )
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in projected)
        cos, sin = rotary_emb[0][0, :, 0, 0::2], rotary_emb[1][0, :, 0, 1::2]  # diffusers has each number twice
        self._keep(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self._dense(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)


def record(pipe: WanPipeline, request: VideoRequest, steps: tuple[int, ...]) -> dict[str, Tensor]:
    """Make a video with dense attention and keep `{"STEP.LAYER.q": [1, H, N, D], ...}` of its prompted forwards."""
    found: dict[str, Tensor] = {}
    now = 0

    def keep(layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        # The forward with the prompt comes first in a step, or first in its batch.
        if now in steps and f"{now}.{layer}.q" not in found:
            for name, x in zip("qkv", (q, k, v), strict=True):
                found[f"{now}.{layer}.{name}"] = x[:1].float().contiguous()

    def step_done(count: int) -> None:
        nonlocal now
        now = count

    attentions = [block.attn1 for block in pipe.transformer.blocks]
    dense = [attn.processor for attn in attentions]
    for layer, attn in enumerate(attentions):
        attn.set_processor(RecordingProcessor(attn.processor, partial(keep, layer)))
    try:
        generate_video(pipe, request, DENSE, on_step=step_done)
    finally:
        for attn, processor in zip(attentions, dense, strict=True):
            attn.set_processor(processor)
    return found


def tiny_wan_cases(model: str = "tiny-wan", steps: tuple[int, ...] = STEPS) -> Iterator[AttentionTensors]:
    """Every layer at every step, all three heads, D = 64. The video is made once and takes seconds."""
    request = _request(model)
    grid = ((request.num_frames - 1) // 4 + 1, request.height // 8, request.width // 8)
    file = cached(f"{model}_steps_{'_'.join(map(str, steps))}", partial(_record_model, model, request, steps))
    for step in steps:
        for layer in range(_layers(file)):
            yield _read(file, model, step, layer, grid)


def _request(model: str) -> VideoRequest:
    return make_requests(find_source(model), [PROMPT], seed=SEED, settings={})[0]


def _record_model(model: str, request: VideoRequest, steps: tuple[int, ...]) -> Mapping[str, Tensor]:
    size = dict(width=request.width, height=request.height)
    pipe = load_pipeline(find_source(model), device=torch.device("cpu"), dtype=torch.float32, **size)
    return record(pipe, request, steps)


def _layers(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        return 1 + max(int(name.split(".")[1]) for name in tensors.keys())  # noqa: SIM118 - no mapping


def _read(file: Path, model: str, step: int, layer: int, grid: tuple[int, int, int]) -> AttentionTensors:
    with safe_open(file, "pt") as tensors:
        q, k, v = (tensors.get_tensor(f"{step}.{layer}.{name}") for name in "qkv")
    name = f"{model}/step {step}/layer {layer}"
    return AttentionTensors(name, q, k, v, grid, is_causal=False, scale=q.shape[-1] ** -0.5)
