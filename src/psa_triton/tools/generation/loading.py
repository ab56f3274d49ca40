"""From a `ModelSource` to a pipeline that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import diffusers
import torch
import transformers
from packaging.version import Version

from psa_triton.models import ModelSpec
from psa_triton.tools.builtin import LinearVideoCodec
from psa_triton.tools.generation.calls import is_modular
from psa_triton.tools.generation.lora import Lora, find_lora, load_lora
from psa_triton.tools.generation.processes import ALONE, Processes
from psa_triton.tools.generation.source import ModelSource

_DTYPE_ARGUMENT = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Target:
    """What is to run, and where. Making it loads nothing."""

    source: ModelSource
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def lora(self) -> Lora | None:
        """The LoRA weights that the model is run with; those on the hub are fetched."""
        spec = self.source.spec
        return None if spec is None or spec.lora_path is None else find_lora(spec.lora_path)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a sidecar."""
        return {
            "model": self.source.name,
            "weights": self.source.weights,
            "lora": None if self.lora is None else self.lora.as_dict(),
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def choose_device(device: str, processes: Processes = ALONE) -> torch.device:
    """The device asked for; `auto` is the accelerator if there is one.

    Args:
        device: `auto`, or a name that torch knows.
        processes: those of the run; where there are several, `auto` and `cuda` are this one's own accelerator.

    Raises:
        ValueError: no such device on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and processes.count > 1:
        device = f"cuda:{processes.local_index}"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device: {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type of transformer and text encoder; `auto` is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        ValueError: no such type.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def load_pipeline(
    source: ModelSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    width: int | None,
    height: int | None,
    lora: Lora | None = None,
) -> diffusers.DiffusionPipeline:
    """Load a pipeline with its model's settings: scheduler, type of the VAE, LoRA, offloading, tiling.

    Args:
        source: what to load.
        device: where it is to run.
        dtype: type of the transformer and the text encoder; the VAE keeps float32 where the registry says so.
        width: of the videos to come, pixels: the noise schedule of some models depends on it. None for the default.
        height: likewise.
        lora: weights to put on the transformer.

    Returns:
        The pipeline, with diffusers' own progress bar switched off.

    Raises:
        OSError: the weights are not on this machine and cannot be fetched, or a file is damaged.
        ValueError: the LoRA does not fit the transformer.
    """
    spec = source.spec
    vae_dtype = dtype if spec is None or spec.vae_dtype != "float32" else torch.float32
    with _expected_warnings_left_out():
        pipe = _from_pretrained(source, {"default": dtype, "vae": vae_dtype})
    pipe.set_progress_bar_config(disable=True)
    if spec is not None:
        _configure(pipe, spec, width or spec.width, height or spec.height)
    if lora is not None:
        load_lora(pipe, lora)
    # Modular pipelines have no such method.
    if spec is not None and spec.cpu_offload and device.type != "cpu" and not is_modular(type(pipe)):
        pipe.enable_model_cpu_offload(device=device)
    else:
        with _expected_warnings_left_out():
            pipe.to(device)
    return pipe


def _from_pretrained(source: ModelSource, dtype: dict[str, torch.dtype]) -> diffusers.DiffusionPipeline:
    kind = getattr(diffusers, source.pipeline)
    try:
        if is_modular(kind):
            return _load_components(kind(pretrained_model_name_or_path=source.location), dtype)
        spec = None if source.is_folder else source.spec
        elsewhere = {} if spec is None else {"revision": spec.revision, **_parts(spec, dtype["default"])}
        return kind.from_pretrained(source.location, **{_DTYPE_ARGUMENT: dtype}, **elsewhere)
    except OSError as error:
        if source.is_folder:
            raise OSError(f"{source.location}: the pipeline could not be loaded: {error}") from error
        raise OSError(
            f"the weights of {source.name} ({source.location}) are not on this machine and could not be fetched; "
            f"where there is network, run `hf download {source.location}`, or copy the pipeline folder here and give "
            "--model PATH"
        ) from error


def _parts(spec: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
    """The components of a pipeline that its repository lacks."""
    parts = {}
    for name, (class_name, repository, folder) in spec.parts.items():
        kind = getattr(diffusers, class_name, None) or getattr(transformers, class_name)
        dtypes = {_DTYPE_ARGUMENT: dtype} if issubclass(kind, torch.nn.Module) else {}
        parts[name] = kind.from_pretrained(repository, subfolder=folder, **dtypes)
    return parts


def _load_components(pipe: Any, dtype: dict[str, torch.dtype]) -> Any:
    """A modular pipeline with its components, which load one by one, from wherever its index says.

    Raises:
        OSError: one did not; diffusers itself logs why and goes on without.
    """
    pipe.load_components(**{_DTYPE_ARGUMENT: dtype})
    named = [x for x in pipe.pretrained_component_names if pipe.get_component_spec(x).pretrained_model_name_or_path]
    if missing := [name for name in named if getattr(pipe, name, None) is None]:
        raise OSError(f"modular_model_index.json: could not load {', '.join(missing)}; the log above says why")
    return pipe


def _configure(pipe: Any, spec: ModelSpec, width: int, height: int) -> None:
    """Scheduler and memory settings of a known model."""
    changes = {"timestep_spacing": spec.timestep_spacing, "flow_shift": spec.flow_shift_at(width, height)}
    changes = {name: value for name, value in changes.items() if value is not None}
    if spec.scheduler is not None or changes:
        scheduler = type(pipe.scheduler) if spec.scheduler is None else getattr(diffusers, spec.scheduler)
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **changes)
    if spec.vae_tiling:
        pipe.vae.enable_tiling()
    if spec.vae_slicing:
        pipe.vae.enable_slicing()


@contextmanager
def _expected_warnings_left_out() -> Iterator[None]:
    """Leaves out three warnings of diffusers'; all others come through.

    That the built-in model's VAE is not the class of real Wan checkpoints is so on purpose. That there is no network
    does not matter if the weights are on this machine, and is part of the error if they are not. That float16 cannot
    run on a CPU is no longer so.
    """

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        foreign_vae = message.startswith("Expected types for vae") and LinearVideoCodec.__name__ in message
        others = ("Couldn't connect to the Hub", "Pipelines loaded with `dtype=torch.float16` cannot run with `cpu`")
        return not (foreign_vae or message.startswith(others))

    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
