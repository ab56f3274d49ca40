"""Options that several commands have, and the way from them to a loaded pipeline."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

from psa_triton.generation import (
    ALONE,
    DenseParts,
    Lora,
    ModelSource,
    Processes,
    VideoRequest,
    checkout_model_configs,
    choose_device,
    choose_dtype,
    configured_models,
    find_lora,
    find_source,
    load_pipeline,
    read_prompts,
)
from psa_triton.impl import Impl, resolve_impl
from psa_triton.names import unknown_name

_ATTENTION = "Model and attention"
_VIDEO = "Video (by default as the model is made for)"
_MACHINE = "Machine"
_INDEXES = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")


def _option(name: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, metavar=metavar)


Prompt = Annotated[str | None, typer.Option("--prompt", help="What is to be seen.")]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompt-file", metavar="FILE", help="Prompts, one a line; blank lines and # comments are skipped."),
]
OutputDir = Annotated[
    Path, typer.Option("--output-dir", help="Videos go to OUTPUT_DIR/MODEL: video_0000.mp4, video_0000.json, ...")
]
Timestamp = Annotated[
    bool, typer.Option("--timestamp/--no-timestamp", help="Make a new folder in OUTPUT_DIR/MODEL for this run.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Make videos again that are there already, or were made differently.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="How many videos to make together.")]
WarmUp = Annotated[
    bool,
    typer.Option("--warmup/--no-warmup", "--warm-up/--no-warm-up", help="First run an untimed step, for fair times."),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Tell of every sparse attention call.")]
Model = Annotated[str, _option("--model", "A known model, or a diffusers pipeline folder.", _ATTENTION, "KEY|PATH")]
ModelPath = Annotated[
    str | None,
    _option("--model-path", "Weights for a known model: a pipeline folder, or a hub id.", _ATTENTION, "PATH|ID"),
]
LoraPath = Annotated[
    str | None,
    _option("--lora-path", "LoRA weights: a safetensors file, its folder, or a hub id.", _ATTENTION, "PATH|ID"),
]
UsePsa = Annotated[
    bool | None,
    _option(
        "--use-psa/--dense",
        "Sparse or dense attention. By default `psa generate` is sparse; the scripts are if a preset is named.",
        _ATTENTION,
    ),
]
AttentionPreset = Annotated[
    str | None,
    _option(
        "--attention-preset",
        "A preset of the model (see `psa presets list`), or SECTION/PRESET; by default the model's own.",
        _ATTENTION,
        "NAME",
    ),
]
PresetsPath = Annotated[
    Path | None, _option("--config", "A presets file of your own instead of the shipped one.", _ATTENTION, "PATH")
]
Implementation = Annotated[Impl, _option("--impl", "Implementation of the sparse operator.", _ATTENTION)]
MinTokens = Annotated[
    int | None,
    _option(
        "--min-tokens",
        "Shorter sequences run dense; 0 for none. By default those that PSA is no faster on.",
        _ATTENTION,
    ),
]
DenseLastSteps = Annotated[
    int, _option("--dense-last-steps", "Denoising steps at the end that run dense.", _ATTENTION, "N")
]
DenseLayers = Annotated[
    str, _option("--dense-layers", "Transformer blocks that run dense, such as 0,1 or 0,36-39.", _ATTENTION, "INDEXES")
]
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
GuidanceScale2 = Annotated[
    float | None, _option("--guidance-scale-2", "The same for the second transformer, where there are two.", _VIDEO)
]
Fps = Annotated[int | None, _option("--fps", "Frames per second of the file.", _VIDEO)]
Device = Annotated[
    str,
    _option("--device", "auto, cpu, cuda, cuda:1, ...; of several processes each has a GPU of its own.", _MACHINE),
]
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

    @cached_property
    def lora(self) -> Lora | None:
        """The LoRA weights that the model is run with; those on the hub are fetched."""
        spec = self.source.spec
        return None if spec is None or spec.lora_path is None else find_lora(spec.lora_path)

    def load(self, request: VideoRequest, console: Console) -> DiffusionPipeline:
        """The pipeline, ready for videos like `request`; a spinner on `console` stands for the libraries' bars."""
        if self.source.spec is not None and self.source.spec.timing_only:
            console.print(
                f"{self.source.name} is for taking times: it was not trained on this size, its videos show little"
            )
        lora = self.lora
        with console.status(f"loading {self.source.name}"), no_loading_bars():
            return load_pipeline(
                self.source,
                device=self.device,
                dtype=self.dtype,
                width=request.width,
                height=request.height,
                lora=lora,
            )


def choose_source(
    model: str,
    *,
    model_path: str | None = None,
    lora_path: str | None = None,
    keys: Sequence[str] = (),
    configs: Path | None = None,
) -> ModelSource:
    """The model that the options name, with its settings.

    A setting comes from the command line; if it is not there, from `model_configs.py`; else from the registry.

    Args:
        model: a key, or a pipeline folder.
        model_path: weights for the key: a folder or a hub id.
        lora_path: LoRA weights: a file, a folder or a hub id.
        keys: the keys to choose from, the first of which has the settings for a folder whose model is not known; all
            keys and no such settings by default.
        configs: a `model_configs.py`; by default that of the checkout which this library runs from, if it does.

    Raises:
        ValueError: neither a key nor a pipeline folder, a mistake in `model_configs.py`, or a LoRA for a folder with an
            unknown model.
        FileNotFoundError: a folder is not there, or the built-in model is not part of this installation.
    """
    models = configured_models(configs or checkout_model_configs())
    if keys and model not in keys and not Path(model).is_dir():
        raise ValueError(f"{unknown_name('model', model, keys)}; nor is it the path of a folder")
    source = find_source(model, models=models, weights=model_path, otherwise=models[keys[0]] if keys else None)
    if lora_path is None:
        return source
    if source.spec is None:
        raise ValueError(f"lora_path: {source.name} is no model I know; give --model KEY --model_path {source.name}")
    return replace(source, spec=replace(source.spec, lora_path=lora_path))


def find_target(source: ModelSource, *, device: str, dtype: str, impl: Impl, processes: Processes = ALONE) -> Target:
    """A model and where it is to run.

    Args:
        source: the model.
        device: as in `choose_device`.
        dtype: as in `choose_dtype`.
        impl: implementation of the sparse operator.
        processes: those of the run.

    Raises:
        ValueError: an unknown device or type, or an implementation that cannot run on the device.
    """
    chosen = choose_device(device, processes)
    resolve_impl(impl, torch.empty(0, device=chosen))
    return Target(source, chosen, choose_dtype(dtype, chosen))


def read_dense_parts(min_tokens: int | None, dense_last_steps: int, dense_layers: str) -> DenseParts:
    """What is to run dense though attention is sparse.

    Raises:
        ValueError: `dense_layers` is no list of indexes.
    """
    layers = read_indexes("dense_layers", dense_layers) if dense_layers else []
    return DenseParts(min_tokens=min_tokens, dense_last_steps=dense_last_steps, dense_layers=tuple(layers))


def read_indexes(name: str, text: str) -> list[int]:
    """Indexes such as `0,2` or `0,36-39`, each once.

    Raises:
        ValueError: it is no list of indexes.
    """
    found: set[int] = set()
    for part in text.split(","):
        indexes = _INDEXES.fullmatch(part.strip())
        new = [] if indexes is None else range(int(indexes["first"]), int(indexes["last"] or indexes["first"]) + 1)
        if not new:
            raise ValueError(f"{name}: expected indexes such as 0,1 or 0,36-39, got {text!r}")
        found.update(new)
    return sorted(found)


def refuse(given: Mapping[str, Any], reason: str) -> None:
    """Refuse options that go with another way of using a command.

    Raises:
        ValueError: one of them was given.
    """
    if names := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(names)}: only for {reason}")


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


class _ConsoleHandler(logging.Handler):
    """Prints above the progress bars of a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record))


@contextmanager
def logging_to(console: Console, *, verbose: bool) -> Iterator[None]:
    """Shows the library's log on `console`: warnings, and with `verbose` every sparse attention call."""
    logger = logging.getLogger("psa_triton")
    before = logger.level
    handler = _ConsoleHandler(console)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Switches off the bars that diffusers and transformers draw while they load; those that were on come back."""
    libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
