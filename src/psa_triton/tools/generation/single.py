"""One video, or several at once, with what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from psa_triton.integrations.diffusers import OnLevels, PSAStats, pipeline_scale, spare_frames, transformers_of
from psa_triton.integrations.stats import now
from psa_triton.integrations.wrappers import unwrap
from psa_triton.tools.generation.attention import DENSE, Attention
from psa_triton.tools.generation.calls import call_name, pipeline_call, run_pipeline
from psa_triton.tools.generation.request import VideoRequest
from psa_triton.tools.generation.source import check_size
from psa_triton.tools.video import Audio

OnStep = Callable[[int, float | None], None]
"""Called with the number of denoising steps done, and the error measured so far (None where nothing was)."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a video cost, in seconds of wall-clock time and in density; videos made together share one cost."""

    total_seconds: float
    """From prompt to frames."""
    transformer_seconds: float
    """In the transformer's forwards."""
    sparse_attention_seconds: float
    """In self-attention layers that ran PSA, their projections included."""
    dense_attention_seconds: float
    """In self-attention layers that ran dense, their projections included."""
    attention_density: float | None
    """Share of keys read by the sparse layers; None if none ran."""
    attention_density_with_estimation: float | None
    """The same, with the cost of estimating importance."""
    run_density: float | None
    """Over all layers and steps, dense warm-up included."""
    run_density_with_estimation: float | None
    """The same, with the cost of estimating importance."""

    measured_error: float | None
    """Relative error of attention at the probed query rows, mean over layers and steps; None if not measured."""
    dense_reasons: tuple[str, ...]
    """Why layers ran dense, such as `warm-up` or `dense preset`."""
    tokens: int | None = None
    """Visual tokens that attend to each other."""
    videos: int = 1
    """How many videos were made together at this cost."""

    @property
    def attention_seconds(self) -> float:
        """In self-attention layers, sparse and dense."""
        return self.sparse_attention_seconds + self.dense_attention_seconds


@dataclass(frozen=True)
class GeneratedVideo:
    """A video and its cost.

    Attributes:
        frames: `[F, H, W, 3]` float32 in [0, 1]; one of an image.
        cost: what it took.
        stats: the same per layer and step.
        audio: of a model that makes it along.
    """

    frames: NDArray[np.float32]
    cost: Cost
    stats: PSAStats
    audio: Audio | None = None


def generate_video(
    pipe: DiffusionPipeline,
    request: VideoRequest,
    attention: Attention,
    *,
    on_step: OnStep | None = None,
    on_levels: OnLevels | None = None,
) -> GeneratedVideo:
    """Make one video; see `generate_videos`."""
    return generate_videos(pipe, [request], attention, on_step=on_step, on_levels=on_levels)[0]


def generate_videos(
    pipe: DiffusionPipeline,
    requests: Sequence[VideoRequest],
    attention: Attention,
    *,
    on_step: OnStep | None = None,
    on_levels: OnLevels | None = None,
) -> list[GeneratedVideo]:
    """Make videos together, in one run of the pipeline.

    Each is what it would be alone, to rounding: its noise comes from its own seed.

    Args:
        pipe: of a known family; it is left as it came.
        requests: what to make; they differ in prompt and seed alone.
        attention: how self-attention is computed.
        on_step: told after each denoising step.
        on_levels: told what each sparse attention call read.

    Raises:
        ValueError: the requests differ in more, the size does not fit the model, or the model made values that are not
            finite.
    """
    first = requests[0]
    if any(replace(request, prompt=first.prompt, seed=first.seed) != first for request in requests):
        raise ValueError("requests: expected them to differ in prompt and seed alone")
    call = pipeline_call(pipe)
    _check_size(pipe, first, call)
    with attention.attach(pipe, time_layers=True, on_levels=on_levels) as handle, _transformer_seconds(pipe) as seconds:

        def step_ended(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(step + 1, handle.stats().summary.measured_error)
            return tensors

        arguments = _arguments(type(pipe).__name__, call, requests)
        arguments |= {"callback_on_step_end": step_ended} if "callback_on_step_end" in call else {}
        began = now(pipe.device)
        output = run_pipeline(pipe, arguments)
        total = now(pipe.device) - began
        stats = handle.stats()
    videos = _videos(output)
    if not np.isfinite(videos).all():
        raise ValueError("the model made values that are not finite; try --dtype float32 or bfloat16")
    cost = _cost(stats, total, sum(seconds), len(videos))
    audios: Sequence[Audio | None] = _audios(pipe, output) or [None] * len(videos)
    return [GeneratedVideo(frames, cost, stats, audio) for frames, audio in zip(videos, audios, strict=True)]


def warm_up(pipe: DiffusionPipeline, requests: Sequence[VideoRequest], attention: Attention) -> None:
    """One untimed step each of what a run will do, so that its times hold nothing that is done only once.

    Args:
        pipe: of a known family.
        requests: as many as are to be made together.
        attention: how self-attention is computed; where it has dense steps, dense attention is run as well.
    """
    short = [replace(request, num_inference_steps=1) for request in requests]
    if attention.has_dense_steps:
        generate_videos(pipe, short, DENSE)
    if attention.config is not None:
        generate_videos(pipe, short, attention.without_dense_steps())


def _check_size(pipe: DiffusionPipeline, request: VideoRequest, call: Mapping[str, Any]) -> None:
    """Check that a video is made of whole tokens, where the pipeline tells how large they are."""
    frames = call.get(call_name("num_frames", call))
    # Not every pipeline's number of frames is 1 more than a multiple of its own tokens'.
    num_frames = None if frames is None or request.num_frames == frames.default else request.num_frames
    try:
        scale = pipeline_scale(pipe)
    except ValueError:
        return
    transformer = next(iter(transformers_of(pipe).values()))
    positions = getattr(getattr(transformer, "rope", None), "max_seq_len", None)
    spare = spare_frames(type(unwrap(transformer)).__name__)
    size = request.width, request.height, num_frames
    check_size(*size, scale, pipeline=type(pipe).__name__, positions=positions, spare_frames=spare)


def _arguments(name: str, call: Mapping[str, Any], requests: Sequence[VideoRequest]) -> dict[str, Any]:
    """Keyword arguments of a pipeline's call. What is None is left out, and so are frames per second that it lacks."""
    first = requests[0]
    arguments = {each.name: getattr(first, each.name) for each in fields(first) if each.name != "seed"}
    if call_name("fps", call) not in call:
        del arguments["fps"]
    arguments = {call_name(key, call): value for key, value in arguments.items() if value is not None}
    if first.image is not None:
        arguments["image"] = first.image.load()
    if unknown := arguments.keys() - call.keys():
        raise ValueError(f"{name} does not take {', '.join(sorted(unknown))}")

    prompts = [request.prompt for request in requests]
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    if len(requests) == 1:  # not every pipeline takes lists
        arguments |= {"prompt": prompts[0], "generator": generators[0]}
    else:
        arguments |= {"prompt": prompts, "generator": generators}
    return {**arguments, "output_type": "np"}


def _videos(output: Any) -> NDArray[np.float32]:
    """What a pipeline made, `[B, F, H, W, 3]` in [0, 1]; of images, one frame each."""
    # A modular pipeline's output holds the image it began with, too.
    made = _first_of(output, "videos", "frames", "images", "image")
    if made is None:
        raise ValueError(f"expected a pipeline that makes frames or images, got {type(output).__name__}")
    pixels = np.asarray(made)
    videos = pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)
    return videos[:, None] if videos.ndim == 4 else videos


def _audios(pipe: DiffusionPipeline, output: Any) -> list[Audio] | None:
    """The audio of each video, where a pipeline makes any: `[B, channels, samples]`, or `[B, samples]`."""
    if (made := _first_of(output, "audio", "sound")) is None:
        return None
    rates = ("output_sampling_rate", "sampling_rate", "sample_rate")
    configs = [config for part in pipe.components.values() if (config := getattr(part, "config", None)) is not None]
    rate = next((getattr(config, name) for name in rates for config in configs if hasattr(config, name)), None)
    if rate is None:
        raise ValueError(f"expected a {type(pipe).__name__} that tells the sampling rate of its audio, found none")
    waves = torch.as_tensor(made).float().cpu().numpy()
    return [Audio(np.atleast_2d(wave), int(rate)) for wave in waves]


def _first_of(output: Any, *names: str) -> Any | None:
    return next((made for name in names if (made := getattr(output, name, None)) is not None), None)


def _cost(stats: PSAStats, total: float, transformer: float, videos: int) -> Cost:
    summary = stats.summary
    return Cost(
        total_seconds=total,
        transformer_seconds=transformer,
        sparse_attention_seconds=summary.sparse_seconds or 0.0,
        dense_attention_seconds=summary.dense_seconds or 0.0,
        attention_density=summary.sparse_density,
        attention_density_with_estimation=summary.sparse_density_with_estimation,
        run_density=summary.run_density,
        run_density_with_estimation=summary.run_density_with_estimation,
        measured_error=summary.measured_error,
        dense_reasons=tuple(sorted({record.reason for record in stats.records if record.reason is not None})),
        tokens=max((record.tokens for record in stats.records), default=None),
        videos=videos,
    )


@contextmanager
def _transformer_seconds(pipe: DiffusionPipeline) -> Iterator[list[float]]:
    """Gathers the seconds of each forward of a pipeline's transformers (one, or one for high and one for low noise)."""
    began, seconds = 0.0, list[float]()

    def start(module: torch.nn.Module, *_: Any) -> None:
        nonlocal began
        began = now(next(module.parameters()).device)

    def stop(module: torch.nn.Module, *_: Any) -> None:
        seconds.append(now(next(module.parameters()).device) - began)

    with ExitStack() as hooks:
        for transformer in transformers_of(pipe).values():
            hooks.callback(transformer.register_forward_pre_hook(start).remove)
            hooks.callback(transformer.register_forward_hook(stop).remove)
        yield seconds
