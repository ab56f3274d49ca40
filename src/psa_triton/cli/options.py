"""Options that several commands have, and the way from them to a loaded pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

from psa_triton.generation import (
    ModelSource,
    VideoRequest,
    choose_device,
    choose_dtype,
    find_source,
    load_pipeline,
    read_prompts,
)
from psa_triton.impl import Impl, resolve_impl

_ATTENTION = "Model and attention"
_VIDEO = "Video (by default as the model is made for)"
_MACHINE = "Machine"


def _option(name: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, metavar=metavar)


PromptFile = Annotated[
    Path | None,
    typer.Option("--prompt-file", metavar="FILE", help="Prompts, one a line; blank lines and # comments are skipped."),
]
Model = Annotated[str, _option("--model", "A known model, or a diffusers pipeline folder.", _ATTENTION, "KEY|PATH")]
PresetsPath = Annotated[
    Path | None, _option("--config", "A presets file of your own instead of the shipped one.", _ATTENTION, "PATH")
]
Implementation = Annotated[Impl, _option("--impl", "Implementation of the sparse operator.", _ATTENTION)]
Seed = Annotated[int, _option("--seed", "Seed of the noise; video i uses seed + i.", _VIDEO)]
NegativePrompt = Annotated[str | None, _option("--negative-prompt", "What is not to be seen.", _VIDEO, "TEXT")]
Steps = Annotated[
    int | None, typer.Option("--num-inference-steps", "--steps", help="Denoising steps.", rich_help_panel=_VIDEO)
]
Width = Annotated[int | None, _option("--width", "Pixels.", _VIDEO)]
Height = Annotated[int | None, _option("--height", "Pixels.", _VIDEO)]
NumFrames = Annotated[int | None, _option("--num-frames", "Frames.", _VIDEO)]
GuidanceScale = Annotated[
    float | None, _option("--guidance-scale", "How closely to follow the prompt; 1 runs the model once a step.", _VIDEO)
]
Fps = Annotated[int | None, _option("--fps", "Frames per second of the file.", _VIDEO)]
Device = Annotated[str, _option("--device", "auto, cpu, cuda, cuda:1, ...", _MACHINE)]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    _option("--dtype", "Type of the weights; auto: float32 on a CPU, else bfloat16.", _MACHINE),
]


@dataclass(frozen=True)
class Target:
    """What is to run, and where. Finding it loads nothing."""

    source: ModelSource
    device: torch.device
    dtype: torch.dtype

    def load(self, request: VideoRequest, console: Console) -> DiffusionPipeline:
        """The pipeline, ready for videos like `request`; a spinner on `console` stands for the libraries' bars."""
        if self.source.spec is not None and self.source.spec.timing_only:
            console.print(
                f"{self.source.name} is for taking times: it was not trained on this size, its videos show little"
            )
        with console.status(f"loading {self.source.name}"), _no_loading_bars():
            return load_pipeline(
                self.source, device=self.device, dtype=self.dtype, width=request.width, height=request.height
            )


def find_target(model: str, *, device: str, dtype: str, impl: Impl) -> Target:
    """What the options name.

    Raises:
        ValueError: an unknown model, device or type, or an implementation that cannot run on the device.
        FileNotFoundError: the built-in model is not part of this installation.
    """
    source = find_source(model)
    chosen = choose_device(device)
    resolve_impl(impl, torch.empty(0, device=chosen))
    return Target(source, chosen, choose_dtype(dtype, chosen))


def read_all_prompts(prompts: list[str], file: Path | None) -> list[str]:
    """The prompts that the options give.

    Raises:
        ValueError: there is none, there are prompts and a file, or the file has none.
        FileNotFoundError: there is no such file.
    """
    if prompts and file is not None:
        raise ValueError("expected --prompt or --prompt-file, got both")
    if file is not None:
        return read_prompts(file)
    if not any(prompt.strip() for prompt in prompts):
        raise ValueError("expected a prompt: give --prompt TEXT or --prompt-file FILE")
    return prompts


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Switches off the bars that diffusers and transformers draw while they load; those that were on come back."""
    libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
