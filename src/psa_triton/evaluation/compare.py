"""The same video, from the same noise, made dense and with PSA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline

from psa_triton.evaluation.metrics import Fidelity, fidelity
from psa_triton.generation import DENSE, Attention, GeneratedVideo, OnStep, VideoRequest, generate_video


@dataclass(frozen=True)
class Candidate:
    """A video made with PSA, against the dense one.

    Attributes:
        label: short name of the attention, unlike any other candidate's.
        attention: how it was made.
        video: frames and cost.
        fidelity: of its frames against the dense video's, before they are compressed to a file.
    """

    label: str
    attention: Attention
    video: GeneratedVideo
    fidelity: Fidelity


@dataclass(frozen=True)
class Comparison:
    """A dense video and others of the same request.

    Attributes:
        request: what was made.
        dense: the reference.
        candidates: the others, one an attention.
    """

    request: VideoRequest
    dense: GeneratedVideo
    candidates: tuple[Candidate, ...]


def compare_attentions(
    pipe: DiffusionPipeline,
    request: VideoRequest,
    attentions: Sequence[Attention],
    *,
    warm_up: bool = True,
    on_start: Callable[[str], OnStep] | None = None,
    on_end: Callable[[], None] | None = None,
) -> Comparison:
    """Make a video dense and with each attention, from the same noise, and measure how far they are apart.

    Args:
        pipe: a Wan or CogVideoX pipeline.
        request: what to make.
        attentions: what to compare with dense attention.
        warm_up: first run one untimed step of each, so that nobody pays for what is done once (memory, token order).
        on_start: told the label before each video; what it returns is told of each denoising step.
        on_end: told after each video.

    Raises:
        ValueError: no attention, one that is dense, or one that comes twice.
    """
    labels = label_attentions(attentions)
    if warm_up:
        for attention in (DENSE, *attentions):
            generate_video(pipe, replace(request, num_inference_steps=1), _without_warm_up(attention))

    def make(label: str, attention: Attention) -> GeneratedVideo:
        video = generate_video(pipe, request, attention, on_step=None if on_start is None else on_start(label))
        if on_end is not None:
            on_end()
        return video

    dense = make(DENSE.name, DENSE)
    candidates = []
    for label, attention in zip(labels, attentions, strict=True):
        video = make(label, attention)
        scores = fidelity(torch.from_numpy(dense.frames), torch.from_numpy(video.frames))
        candidates.append(Candidate(label, attention, video, scores))
    return Comparison(request, dense, tuple(candidates))


def label_attentions(attentions: Sequence[Attention]) -> list[str]:
    """Labels to tell attentions by: the preset's name, with its section where two sections have one of that name.

    Raises:
        ValueError: no attention, one that is dense, or one that comes twice.
    """
    if not attentions:
        raise ValueError("attentions: expected at least one to compare with dense attention, got none")
    for attention in attentions:
        if attention.config is None:
            raise ValueError(f"attentions: expected sparse ones, got {attention.name}, which is dense")
    names = [attention.name for attention in attentions]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"attentions: expected each once, got {min(twice)} twice")
    short = [name.rpartition("/")[2] for name in names]
    return [label if short.count(label) == 1 else name for label, name in zip(short, names, strict=True)]


def _without_warm_up(attention: Attention) -> Attention:
    config = attention.config
    return attention if config is None else replace(attention, config=config.replace(warmup_steps=0))
