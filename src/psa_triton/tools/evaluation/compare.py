"""The same video, from the same noise, made dense, dense again, and with PSA."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import repeat

import torch
from diffusers import DiffusionPipeline

from psa_triton.tools.evaluation.ceiling import Ceiling
from psa_triton.tools.evaluation.levels_record import LevelRecording
from psa_triton.tools.evaluation.measures import Fidelity, fidelity
from psa_triton.tools.generation import DENSE, Attention, GeneratedVideo, OnStep, VideoRequest, generate_video

logger = logging.getLogger("psa_triton")


@dataclass(frozen=True)
class Candidate:
    """A video that is held against the dense one.

    Attributes:
        label: how it was made, in a few words; unlike any other's.
        attention: likewise.
        video: frames and cost.
        fidelity: of its frames against the dense video's, before they are compressed to a file.
        recording: what its sparse calls read.
    """

    label: str
    attention: Attention
    video: GeneratedVideo
    fidelity: Fidelity
    recording: LevelRecording


@dataclass(frozen=True)
class Comparison:
    """A dense video and others of the same request.

    Attributes:
        request: what was made.
        dense: the reference.
        ceiling: dense again, made another way: what dense attention itself varies by; None if not asked for, or failed.
        candidates: those with PSA, one an attention.
        missing: why others could not be made or measured, by the label of the attention or of the second dense run.
    """

    request: VideoRequest
    dense: GeneratedVideo
    ceiling: Candidate | None
    candidates: tuple[Candidate, ...]
    missing: Mapping[str, Exception] = field(default_factory=dict)


def compare_attentions(
    pipe: DiffusionPipeline,
    request: VideoRequest,
    attentions: Sequence[Attention],
    *,
    ceiling: Ceiling | None = None,
    on_start: Callable[[str], OnStep | None] = lambda _: None,
    on_end: Callable[[], None] = lambda: None,
) -> Comparison:
    """Make a video dense and with each attention, from the same noise, and measure how far they are apart.

    Any error of one attention fails just that; one of the first dense video is raised.

    Args:
        pipe: a Wan or CogVideoX pipeline.
        request: what to make.
        attentions: what to compare with dense attention.
        ceiling: how to make the dense video a second time; None for not at all.
        on_start: told the label before each video; what it returns is told of each denoising step.
        on_end: told after each video.

    Raises:
        ValueError: no attention, one that is dense, or one that comes twice.
    """
    ways: list[tuple[str, Attention, Ceiling | None]] = []
    if ceiling is not None:
        ways.append((ceiling.label, DENSE, ceiling))
    ways += zip(label_attentions(attentions), attentions, repeat(None))

    def make(label: str, attention: Attention, recording: LevelRecording | None = None) -> GeneratedVideo:
        on_step = on_start(label)
        try:
            return generate_video(pipe, request, attention, on_step=on_step, on_levels=recording)
        finally:
            on_end()

    dense = make(DENSE.name, DENSE)
    made: list[Candidate] = []
    missing: dict[str, Exception] = {}
    for label, attention, second in ways:
        recording = LevelRecording()
        try:
            with nullcontext() if second is None else second.entered(pipe):
                video = make(label, attention, recording if second is None else None)
            first, again = (torch.from_numpy(x.frames).to(pipe._execution_device) for x in (dense, video))
            made.append(Candidate(label, attention, video, fidelity(first, again), recording))
        except Exception as error:
            logger.debug("%s failed", label, exc_info=True)
            missing[label] = error
    dense_again = made.pop(0) if made and made[0].attention is DENSE else None
    return Comparison(request, dense, dense_again, tuple(made), missing)


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
