"""Groups of options, and how typer gets them.

A command's options are the fields of a dataclass, in the order of its help; a field that is such a dataclass itself is
a group that several commands have. Nothing heavy is imported here: `--help` and slips wait for no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Final, Literal, get_type_hints

import typer

_INDEXES = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
REQUIRED: Final[Any] = ...
"""Default of an option that has none, as typer writes it."""


def option(default: Any, help: str | None, *names: str, **more: Any) -> Any:
    """A field that is an option; `names` where they are not that of the field, `more` as `typer.Option` takes it."""
    return field(default=default, metadata={"option": lambda value: typer.Option(value, *names, help=help, **more)})


of_attention = partial(option, rich_help_panel="Model and attention")
of_video = partial(option, rich_help_panel="Video (by default as the model is made for)")
of_machine = partial(option, rich_help_panel="Machine")


@dataclass(frozen=True, kw_only=True)
class PromptsOptions:
    """What to make, of as many prompts as are given."""

    prompt: list[str] | None = option(None, "What is to be seen; may be given repeatedly.", metavar="TEXT")
    prompt_file: Path | None = option(
        None, "Prompts, one a line; blank lines and # comments are skipped.", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, with which weights."""

    model: str = of_attention("tiny-wan", "A known model, or a diffusers pipeline folder.", metavar="KEY|PATH")
    model_path: str | None = of_attention(
        None, "Weights for a known model: a pipeline folder, or a hub id.", metavar="PATH|ID"
    )
    lora_path: str | None = of_attention(
        None, "LoRA weights: a safetensors file, its folder, or a hub id.", metavar="PATH|ID"
    )


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Where a preset is from, and what computes it."""

    config: Path | None = of_attention(None, "A presets file of your own instead of the shipped one.", metavar="PATH")
    # The words are those of `psa_triton.impl.Impl`, whose module needs torch; a test holds them together.
    impl: Literal["auto", "reference", "torch", "cpu", "triton"] = of_attention(
        "auto", "Implementation of the sparse operator."
    )


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Sparse attention of which preset, or dense."""

    use_psa: bool | None = of_attention(
        None,
        "Sparse or dense attention. By default `psa generate` is sparse; the scripts are if a preset is named.",
        "--use-psa/--dense",
    )
    attention_preset: str | None = of_attention(
        None,
        "A preset of the model (see `psa presets list`), or SECTION/PRESET; by default the model's own.",
        metavar="NAME",
    )
    preset: PresetOptions = field(default_factory=PresetOptions)


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """What runs dense though attention is sparse."""

    max_error: float | None = of_attention(
        None,
        "Bound on the measured relative error of attention, past which a layer runs dense; instead of warm-up.",
        metavar="ERROR",
    )
    min_tokens: int | None = of_attention(
        None, "Shorter sequences run dense; 0 for none. By default those that PSA is no faster on."
    )
    dense_last_steps: int = of_attention(0, "Denoising steps at the end that run dense.", metavar="N")
    dense_layers: str = of_attention(
        "", "Transformer blocks that run dense, such as 0,1 or 0,36-39.", metavar="INDEXES"
    )


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What a video is like: fields of `VideoRequest`; None for what the model is made for."""

    negative_prompt: str | None = of_video(None, "What is not to be seen.", metavar="TEXT")
    image: Path | None = of_video(None, "A picture to start from, for models that do.", metavar="FILE")
    num_inference_steps: int | None = of_video(None, "Denoising steps.", "--num-inference-steps", "--steps")
    width: int | None = of_video(None, "Pixels.")
    height: int | None = of_video(None, "Pixels.")
    num_frames: int | None = of_video(None, "Frames.")
    guidance_scale: float | None = of_video(None, "How closely to follow the prompt; 1 runs the model once a step.")
    guidance_scale_2: float | None = of_video(None, "The same for the second transformer, where there are two.")


@dataclass(frozen=True, kw_only=True)
class VideoFileOptions(VideoOptions):
    """The same of a video that is written."""

    fps: int | None = of_video(None, "Frames per second of the file.")


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where a model runs."""

    device: str = of_machine("auto", "auto, cpu, cuda, cuda:1, ...; of several processes each has a GPU of its own.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = of_machine(
        "auto", "Type of the weights; auto: float32 on a CPU, else bfloat16."
    )


def command(defaults: Any, run: str, **context: Any) -> Callable[..., None]:
    """A command for typer.

    Args:
        defaults: the command's dataclass of options: its docstring is the help, its values are the defaults.
        run: the module of this package that is imported when the command is called; its function `run` gets the options
            and `context`.
    """

    def call(**given: Any) -> None:
        import_module(f"{__package__}.{run}").run(_filled(defaults, given), **context)

    call.__doc__ = type(defaults).__doc__
    call.__signature__ = Signature([*_parameters(defaults)])  # type: ignore[attr-defined]
    return call


def _parameters(defaults: Any) -> Iterator[Parameter]:
    hints = get_type_hints(type(defaults))
    for each in fields(defaults):
        value = getattr(defaults, each.name)
        if is_dataclass(value):
            yield from _parameters(value)
        else:
            default = each.metadata["option"](value)
            yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[each.name])


def _filled(defaults: Any, given: Mapping[str, Any]) -> Any:
    """The options with what the command line says."""
    values = {each.name: getattr(defaults, each.name) for each in fields(defaults)}
    return replace(
        defaults,
        **{name: _filled(value, given) if is_dataclass(value) else given[name] for name, value in values.items()},
    )


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
