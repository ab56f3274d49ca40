"""From the options of a command to a model that is ready to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

from psa_triton.impl import Impl, resolve_impl
from psa_triton.models import model_key
from psa_triton.names import unknown_name
from psa_triton.tools.cli.options import read_indexes
from psa_triton.tools.generation import (
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
                self.source, device=self.device, dtype=self.dtype, width=request.width, height=request.height, lora=lora
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
        model: a key, the name of a preset section, or a pipeline folder.
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
    if keys and model not in keys and model_key(model) in keys:
        model = model_key(model)
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
