"""What to make: one request a video, from prompts and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from PIL import Image

from psa_triton.integrations.diffusers import spare_frames
from psa_triton.tools.generation.calls import call_name
from psa_triton.tools.generation.source import ModelSource, check_size, video_scale
from psa_triton.tools.picture import open_picture, upright

_MODEL_DEFAULTS = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2", "fps")

_MOST = 1000
"""Denoising steps, as models are trained on; and frames per second: an mp4 of 100,000 shows none when it is read."""


@dataclass(frozen=True)
class InputImage:
    """A picture that a video, or an image, is made from."""

    path: str
    """Of its file."""
    sha256: str
    """Of what the file holds: another picture under the same name makes another video."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The picture in a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no picture.
        """
        with open_picture(path, "image") as image:
            image.load()
        return cls(str(path), sha256(path.read_bytes()).hexdigest())

    def load(self) -> Image.Image:
        """Its pixels, RGB, the way up that its camera noted."""
        with open_picture(Path(self.path), "image") as file:
            return upright(file)


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """Everything that, with a model and an attention, determines a video, or an image."""

    prompt: str
    """What is to be seen."""
    negative_prompt: str | None = None
    """What is not."""
    seed: int
    """Of the noise the video starts from; the noise is drawn on the CPU, so it is the same on every device."""
    image: InputImage | None = None
    """To start from."""
    # None stands for what the pipeline finds itself, or does not have.
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    num_frames: int | None = None
    """Frames."""
    num_inference_steps: int
    """Denoising steps."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is none."""
    guidance_scale_2: float | None = None
    """Guidance of the second transformer, where there are two."""
    fps: float | None
    """Frames per second of the file; None of an image."""

    @property
    def is_image(self) -> bool:
        """Whether an image is to be made, and no video."""
        return self.fps is None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("prompt: expected some text, got none")
        for name in ("prompt", "negative_prompt"):
            try:
                (getattr(self, name) or "").encode()
            except UnicodeEncodeError as error:  # what Python makes of an argument where the locale is not UTF-8's
                raise ValueError(
                    f"{name}: expected UTF-8, got other bytes; set LC_ALL=C.UTF-8 and try again"
                ) from error
        for name in ("num_inference_steps", "fps"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= _MOST:
                raise ValueError(f"{name}: expected 1 to {_MOST}, got {value}")
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
        wrong = "expected a file, got the folder" if file.is_dir() else "there is no file"
        raise FileNotFoundError(f"prompt_file: {wrong} {file}")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
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
        settings: fields of `VideoRequest`, the image as its path; None stands for the default.

    Raises:
        ValueError: a setting is out of range or none of the model's, the size does not fit the model or this machine,
            or the model needs what no option gives.
        FileNotFoundError: there is no such image.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    _check_call(source, given)
    if "image" in given:
        given["image"] = InputImage.read(given["image"])
    filled = {name: given[name] if name in given else source.default(name) for name in _MODEL_DEFAULTS}
    if filled["num_inference_steps"] is None:
        raise ValueError(
            f"model: expected a pipeline with num_inference_steps, got a {source.pipeline}; call it in Python, with "
            "apply_psa"
        )
    if source.spec is not None and (scale := video_scale(source)) is not None:
        size = filled["width"], filled["height"], filled["num_frames"]
        spare = spare_frames(str(source.spec.transformer["_class_name"]))
        check_size(*size, scale, pipeline=source.pipeline, positions=source.spec.positions, spare_frames=spare)
    return [VideoRequest(prompt=prompt, seed=seed + i, **{**given, **filled}) for i, prompt in enumerate(prompts)]


def _check_call(source: ModelSource, given: Mapping[str, Any]) -> None:
    """Check that a pipeline takes what is given, and that it is given what it needs."""
    call, name = source.call, source.pipeline
    if source.makes_images and (videos := [setting for setting in ("num_frames", "fps") if setting in given]):
        raise ValueError(f"{videos[0]}: expected none, as {name} makes images; leave it out")
    for setting in given.keys() - {"fps"}:
        if call_name(setting, call) not in call:
            raise ValueError(f"{setting}: {name} does not take it; leave it out")
    if "guidance_scale_2" in given and source.spec is not None and not source.spec.two_transformers:
        raise ValueError(f"guidance_scale_2: {source.name} has one transformer; leave it out")
    needed = {parameter.name for parameter in call.values() if parameter.default is parameter.empty}
    needed -= {"self", "args", "kwargs", "prompt", *given}
    if "image" in needed:
        raise ValueError(f"image: expected one, which {name} starts from; give --image FILE")
    if needed:
        raise ValueError(
            f"model: expected a pipeline that makes something of a prompt or an image, and {name} needs "
            f"{', '.join(sorted(needed))}; call it in Python, with apply_psa"
        )
