"""Whole videos: the methods of `sparsevideo` beside PSA, against dense attention, from the same noise.

Needs an NVIDIA GPU and `pip install sparsevideo --no-build-isolation`. Each of its methods runs with its own defaults.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Final

import torch
from diffusers import DiffusionPipeline

from peer.operators import LeftOut
from psa_triton.tools.evaluation.measures import PSNR_CAP
from psa_triton.tools.generation import (
    DENSE,
    Attention,
    GeneratedVideo,
    VideoRequest,
    choose_attention,
    choose_dtype,
    find_source,
    generate_video,
    load_pipeline,
    make_requests,
)

METHODS: Final = ("spargeattn", "svg1", "svg2", "svgear", "radial", "sta", "draft", "adacluster", "svoo")
"""Of `sparsevideo`; `flashomni` needs a package of its own."""


def compare_videos(model: str, prompt: str, presets: tuple[str, ...], device: torch.device) -> list[dict[str, Any]]:
    """A row for dense attention, each preset of PSA, and each of `METHODS`.

    Raises:
        LeftOut: there is no GPU, or the package is missing.
    """
    if device.type != "cuda":
        raise LeftOut("needs an NVIDIA GPU")
    if find_spec("sparsevideo") is None:
        raise LeftOut("not installed: pip install sparsevideo --no-build-isolation")
    source = find_source(model)
    request = make_requests(source, [prompt], seed=42, settings={})[0]
    size = dict(width=request.width, height=request.height)
    pipe = load_pipeline(source, device=device, dtype=choose_dtype("auto", device), **size)
    generate_video(pipe, replace(request, num_inference_steps=1), DENSE)  # what is done once is done
    dense = generate_video(pipe, request, DENSE)
    ours = [_run(f"PSA {name}", pipe, request, choose_attention(source, name), dense) for name in presets]
    theirs = [_run_sparsevideo(method, pipe, request, dense) for method in METHODS]
    return [_row("dense", dense, dense), *ours, *theirs]


def _run_sparsevideo(
    method: str, pipe: DiffusionPipeline, request: VideoRequest, dense: GeneratedVideo
) -> dict[str, Any]:
    name = f"sparsevideo {method}"
    try:
        with _replaced_attention(pipe, method):
            return _run(name, pipe, request, DENSE, dense)
    # It tells of models, sizes and hardware that it does not take in many ways: all of them belong in the table.
    except (RuntimeError, ValueError, TypeError, ImportError, AttributeError, AssertionError, KeyError) as error:
        return {"name": name, "left_out": f"{type(error).__name__}: {error}".splitlines()[0]}


@contextmanager
def _replaced_attention(pipe: DiffusionPipeline, method: str) -> Iterator[None]:
    import sparsevideo

    sparsevideo.replace_attention(pipe, method=method)
    try:
        yield
    finally:
        sparsevideo.restore_sparse_attention(pipe)


def _run(
    name: str, pipe: DiffusionPipeline, request: VideoRequest, attention: Attention, dense: GeneratedVideo
) -> dict[str, Any]:
    generate_video(pipe, replace(request, num_inference_steps=1), attention)
    return _row(name, generate_video(pipe, request, attention), dense)


def _row(name: str, video: GeneratedVideo, dense: GeneratedVideo) -> dict[str, Any]:
    return {
        "name": name,
        "psnr": _psnr(video, dense),
        "transformer_seconds": round(video.cost.transformer_seconds, 3),
        "total_seconds": round(video.cost.total_seconds, 3),
        "run_density_with_estimation": video.cost.run_density_with_estimation,
    }


def _psnr(video: GeneratedVideo, dense: GeneratedVideo) -> float:
    """Mean over frames, dB."""
    errors = torch.from_numpy(video.frames - dense.frames).square().mean(dim=(1, 2, 3)).double()
    return round(statistics.mean((-10 * errors.log10()).clamp(max=PSNR_CAP).tolist()), 2)
