"""Options that several commands have. Nothing heavy is imported here: `--help` and slips wait for no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

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
    Path,
    typer.Option(
        "--output-dir",
        help="Videos go to OUTPUT_DIR/MODEL: video_0000.mp4, video_0000.json, ...; new ones get the next numbers.",
    ),
]
Timestamp = Annotated[
    bool, typer.Option("--timestamp/--no-timestamp", help="Make a new folder in OUTPUT_DIR/MODEL for this run.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Number videos from 0000, and replace those that are there.")
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
# The words are those of `psa_triton.impl.Impl`, whose module needs torch; a test holds them together.
Implementation = Annotated[
    Literal["auto", "reference", "torch", "cpu", "triton"],
    _option("--impl", "Implementation of the sparse operator.", _ATTENTION),
]
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
    str, _option("--device", "auto, cpu, cuda, cuda:1, ...; of several processes each has a GPU of its own.", _MACHINE)
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    _option("--dtype", "Type of the weights; auto: float32 on a CPU, else bfloat16.", _MACHINE),
]


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
