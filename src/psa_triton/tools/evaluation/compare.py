"""The same video, from the same noise, made dense, dense again, and with PSA."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline

from psa_triton.tools.evaluation.ceiling import Ceiling
from psa_triton.tools.evaluation.choice_time import level_choice_seconds
from psa_triton.tools.evaluation.levels_record import LevelRecording
from psa_triton.tools.evaluation.measures import Fidelity, fidelity
from psa_triton.tools.generation import DENSE, Attention, GeneratedVideo, OnStep, VideoRequest, generate_video

logger = logging.getLogger("psa_triton")

T = TypeVar("T")


@dataclass(frozen=True)
class SecondDense:
    """A dense video made another way: its distance from the first is what dense attention itself varies by.

    Attributes:
        label: how it was made, in a few words.
        video: frames and cost.
        fidelity: against the first dense video.
    """

    label: str
    video: GeneratedVideo
    fidelity: Fidelity


@dataclass(frozen=True)
class Candidate:
    """A video made with PSA, against the dense one.

    Attributes:
        label: short name of the attention, unlike any other candidate's.
        attention: how it was made.
        video: frames and cost.
        fidelity: of its frames against the dense video's, before they are compressed to a file.
        recording: what its sparse calls read.
        level_choice_seconds: what choosing levels (estimating importance included) took of the attention's time,
            measured apart; None without a sparse call.
    """

    label: str
    attention: Attention
    video: GeneratedVideo
    fidelity: Fidelity
    recording: LevelRecording
    level_choice_seconds: float | None


@dataclass(frozen=True)
class MissingVideo:
    """A video that could not be made or measured.

    Attributes:
        label: of the attention, or of the second dense run.
        error: why.
    """

    label: str
    error: Exception


@dataclass(frozen=True)
class Comparison:
    """A dense video and others of the same request.

    Attributes:
        request: what was made.
        dense: the reference.
        ceiling: dense again; None if it was not asked for, or failed.
        candidates: those with PSA, one an attention.
        missing: those that failed.
    """

    request: VideoRequest
    dense: GeneratedVideo
    ceiling: SecondDense | None
    candidates: tuple[Candidate, ...]
    missing: tuple[MissingVideo, ...] = ()


def compare_attentions(
    pipe: DiffusionPipeline,
    request: VideoRequest,
    attentions: Sequence[Attention],
    *,
    ceiling: Ceiling | None = None,
    on_start: Callable[[str], OnStep] | None = None,
    on_end: Callable[[], None] | None = None,
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
    labels = label_attentions(attentions)

    def make(label: str, attention: Attention, recording: LevelRecording | None = None) -> GeneratedVideo:
        on_step = None if on_start is None else on_start(label)
        try:
            return generate_video(pipe, request, attention, on_step=on_step, on_levels=recording)
        finally:
            if on_end is not None:
                on_end()

    def again(how: Ceiling) -> SecondDense:
        with how.entered(pipe):
            video = make(how.label, DENSE)
        return SecondDense(how.label, video, _closeness(pipe, dense, video))

    def candidate(label: str, attention: Attention) -> Candidate:
        recording = LevelRecording()
        video = make(label, attention, recording)
        seconds = level_choice_seconds(pipe, recording, attention.impl)
        return Candidate(label, attention, video, _closeness(pipe, dense, video), recording, seconds)

    dense = make(DENSE.name, DENSE)
    missing: list[MissingVideo] = []
    second = None
    candidates = []
    if ceiling is not None:
        second = _attempt(ceiling.label, partial(again, ceiling), missing)
    for label, attention in zip(labels, attentions, strict=True):
        made = _attempt(label, partial(candidate, label, attention), missing)
        if made is not None:
            candidates.append(made)
    return Comparison(request, dense, second, tuple(candidates), tuple(missing))


def _attempt(label: str, make: Callable[[], T], missing: list[MissingVideo]) -> T | None:
    try:
        return make()
    except Exception as error:
        logger.debug("%s failed", label, exc_info=True)
        missing.append(MissingVideo(label, error))
        return None


def _closeness(pipe: DiffusionPipeline, dense: GeneratedVideo, video: GeneratedVideo) -> Fidelity:
    device = pipe._execution_device
    return fidelity(torch.from_numpy(dense.frames).to(device), torch.from_numpy(video.frames).to(device))


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
