"""What to make: one request a video, from prompts and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psa_triton.tools.generation.source import ModelSource, check_size, video_scale

_MODEL_DEFAULTS = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2", "fps")


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """Everything that, with a model and an attention, determines a video."""

    prompt: str
    """What is to be seen."""
    negative_prompt: str | None = None
    """What is not."""
    seed: int
    """Of the noise the video starts from; the noise is drawn on the CPU, so it is the same on every device."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_frames: int
    """Frames."""
    num_inference_steps: int
    """Denoising steps."""
    guidance_scale: float
    """Classifier-free guidance; 1 is none."""
    guidance_scale_2: float | None = None
    """Guidance of the second transformer, where there are two."""
    fps: int
    """Frames per second of the file."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("prompt: expected some text, got none")
        for name in ("num_inference_steps", "fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed: expected a number of 64 bits, got {self.seed}")
        for name in ("guidance_scale", "guidance_scale_2"):
            if (scale := getattr(self, name)) is not None and not 0 <= scale < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, got {scale}")


def read_prompts_file(file: Path) -> list[str]:
    """Prompts of a text file, one a line; blank lines and lines that start with `#` are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no prompt in it, or it is not UTF-8 text.
    """
    if not file.is_file():
        raise FileNotFoundError(f"prompt_file: there is no file {file}")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"prompt_file: expected UTF-8 text, got something else in {file} at byte {error.start}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise OSError(f"prompt_file: {file} cannot be read: {error.strerror}; name another file") from error
    if any("\0" in line for line in lines):
        raise ValueError(f"prompt_file: expected text, got bytes of value 0 in {file}; save it as UTF-8 text")
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"prompt_file: expected at least one prompt, one a line, got none in {file}")
    return prompts


def make_requests(
    source: ModelSource, prompts: Sequence[str], *, seed: int, settings: Mapping[str, Any]
) -> list[VideoRequest]:
    """One request a prompt; the i-th has `seed + i`.

    Args:
        source: the model; its defaults fill in what `settings` leaves out.
        prompts: what is to be seen.
        seed: of the first video.
        settings: fields of `VideoRequest`; None stands for the default.

    Raises:
        ValueError: a setting is out of range, or the size does not fit the model or this machine.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    filled = {name: given[name] if name in given else source.default(name) for name in _MODEL_DEFAULTS}
    if (scale := video_scale(source)) is not None:
        positions = source.spec.positions if source.spec is not None else None
        check_size(filled["width"], filled["height"], filled["num_frames"], scale, positions=positions)
    return [VideoRequest(prompt=prompt, seed=seed + i, **{**given, **filled}) for i, prompt in enumerate(prompts)]
