"""From the options of a command to a model that is ready to run, its attention, and what it is to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

from psa_triton.impl import Impl, resolve_impl
from psa_triton.tools.cli.commands import (
    AttentionOptions,
    DenseOptions,
    MachineOptions,
    ModelOptions,
    PresetOptions,
    PromptsOptions,
)
from psa_triton.tools.cli.options import read_indexes
from psa_triton.tools.generation.attention import DENSE, Attention, DenseParts, named_attention
from psa_triton.tools.generation.loading import Target, choose_device, choose_dtype, load_pipeline
from psa_triton.tools.generation.model_configs import checkout_model_configs, configured_models
from psa_triton.tools.generation.processes import ALONE, Processes
from psa_triton.tools.generation.request import VideoRequest, read_prompts_file
from psa_triton.tools.generation.source import ModelSource, find_source


def read_prompts(options: PromptsOptions) -> list[str]:
    """The prompts that the options give.

    Raises:
        ValueError: there is none, there are prompts and a file, or the file has none.
        FileNotFoundError: there is no such file.
    """
    if options.prompt and options.prompt_file is not None:
        raise ValueError("expected --prompt or --prompt-file, got both")
    if options.prompt_file is not None:
        return read_prompts_file(options.prompt_file)
    if not any(prompt.strip() for prompt in options.prompt or ()):
        raise ValueError("expected a prompt: give --prompt TEXT or --prompt-file FILE")
    return options.prompt or []


def choose_source(options: ModelOptions, *, keys: Sequence[str] = (), configs: Path | None = None) -> ModelSource:
    """The model that the options name, with its settings.

    A setting comes from the command line; if it is not there, from `model_configs.py`; else from the registry.

    Args:
        options: the model: a key, the name of a preset section, or a pipeline folder.
        keys: those to choose from, as in `find_source`.
        configs: a `model_configs.py`; by default that of the checkout which this library runs from, if it does.

    Raises:
        ValueError: neither a key nor a pipeline folder, a mistake in `model_configs.py`, or a LoRA for a folder with an
            unknown model.
        FileNotFoundError: a folder is not there, or the built-in model is not part of this installation.
    """
    models = configured_models(configs or checkout_model_configs())
    source = find_source(options.model, models=models, keys=keys, weights=options.model_path)
    if options.lora_path is None:
        return source
    if source.spec is None:
        raise ValueError(f"lora_path: {source.name} is no model I know; give --model KEY --model_path {source.name}")
    return replace(source, spec=replace(source.spec, lora_path=options.lora_path))


def find_place(options: MachineOptions, impl: Impl, processes: Processes = ALONE) -> tuple[torch.device, torch.dtype]:
    """The device and the type of weights that the options name.

    Raises:
        ValueError: an unknown device or type, or an implementation that cannot run on the device.
    """
    device = choose_device(options.device, processes)
    resolve_impl(impl, torch.empty(0, device=device))
    return device, choose_dtype(options.dtype, device)


def find_target(source: ModelSource, options: MachineOptions, impl: Impl, processes: Processes = ALONE) -> Target:
    """A model and where it is to run; errors as in `find_place`."""
    return Target(source, *find_place(options, impl, processes))


def read_dense_parts(options: DenseOptions) -> DenseParts:
    """What is to run dense though attention is sparse.

    Raises:
        ValueError: `dense_layers` is no list of indexes.
    """
    layers = read_indexes("dense_layers", options.dense_layers) if options.dense_layers else ()
    return DenseParts(**{**asdict(options), "dense_layers": tuple(layers)})


def wanted_attention(options: AttentionOptions, choose: Callable[..., Attention], *, sparse: bool) -> Attention:
    """The attention that the options name.

    Args:
        options: dense, or a preset.
        choose: the attention of a preset, with arguments `file` and `impl`.
        sparse: whether it is sparse where the options name neither.

    Raises:
        ValueError: dense attention and a preset, or as `choose` raises.
    """
    named = options.attention_preset is not None
    if options.use_psa or (options.use_psa is None and (sparse or named)):
        return choose(options.attention_preset, file=options.preset.config, impl=options.preset.impl)
    if named or options.preset.config is not None:
        raise ValueError("expected --use-psa with --attention-preset or --config, got dense attention")
    return DENSE


def attention_for_files(preset: str | None, options: PresetOptions, *, files: str) -> Attention:
    """The attention for saved tensors, of a preset that is named with its section.

    Raises:
        ValueError: it is not, as `files` tell no model; or there is no such preset.
    """
    if "/" not in (preset or ""):
        raise ValueError(
            f"attention_preset: expected SECTION/PRESET, as {files}, got {preset!r}; `psa presets list` shows them"
        )
    return named_attention(preset, file=options.config, impl=options.impl)


def load(target: Target, request: VideoRequest, console: Console) -> DiffusionPipeline:
    """The pipeline, ready for videos like `request`; a spinner on `console` stands for the libraries' bars."""
    source = target.source
    if source.spec is not None and source.spec.timing_only:
        console.print(f"{source.name} is for taking times: it was not trained on this size, its videos show little")
    lora = target.lora
    with loading(source.name, console):
        return load_pipeline(
            source, device=target.device, dtype=target.dtype, width=request.width, height=request.height, lora=lora
        )


@contextmanager
def loading(name: str, console: Console) -> Iterator[None]:
    """A spinner, in place of the bars that diffusers and transformers draw while they load."""
    libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        with console.status(f"loading {name}"):
            yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
