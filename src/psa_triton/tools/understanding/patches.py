"""Frames -> the patches that Qwen's vision models read; torchvision, which transformers' own way needs, is not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen2VLImageProcessorPil

from psa_triton.tools.understanding.media import Media

# What Qwen2.5-VL's authors give their model (their package qwen-vl-utils), in visual tokens.
_MIN_FRAME_TOKENS, _MAX_FRAME_TOKENS = 128, 768
_MAX_VIDEO_TOKENS = int(128_000 * 0.9)
_LEAST_SLACK = 1.05
_MAX_RATIO = 200  # of sides; the models of transformers refuse more


@dataclass(frozen=True)
class Patches:
    """What the vision model reads of one image or video.

    Attributes:
        values: `[T·H·W, channels · temporal patch · patch · patch]` float32; patches that become one visual token lie
            next to each other.
        grid: T, H, W, in patches.
        tokens: visual tokens of the language model.
    """

    values: torch.Tensor
    grid: tuple[int, int, int]
    tokens: int


class Patcher:
    """Cuts frames into patches, with sizes, means and deviations of a model folder.

    Args:
        folder: has a `preprocessor_config.json` (or `processor_config.json`) of a Qwen2-VL image processor.
        max_pixels: of an image, or of each frame; None for the model's own.

    Raises:
        OSError: the folder has no image processor.
        ValueError: `max_pixels` is less than one visual token.
    """

    def __init__(self, folder: Path, *, max_pixels: int | None = None) -> None:
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._patch, self._merge = self._processor.patch_size, self._processor.merge_size
        self.temporal_patch = self._processor.temporal_patch_size
        """Frames that a patch holds."""
        self._token_pixels = (self._patch * self._merge) ** 2
        self._video_size = _video_size(folder)
        if max_pixels is not None and max_pixels < self._token_pixels:
            raise ValueError(f"max_pixels: expected at least {self._token_pixels}, one visual token, got {max_pixels}")
        self._max_pixels = max_pixels

    def cut(self, media: Media) -> Patches:
        """Resize, normalise and cut.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        height, width = media.frames.shape[1:3]
        if max(height, width) > _MAX_RATIO * min(height, width):
            raise ValueError(
                f"input: expected one side at most {_MAX_RATIO} times the other, got {width}x{height} pixels; crop it"
            )
        size = self.frame_size(media)
        frames = [self._cut_frame(frame, size) for frame in media.frames]
        height, width = frames[0][1]
        values = join_frames(torch.stack([patches for patches, _ in frames]), self.temporal_patch)
        grid = (len(values) // (height * width), height, width)
        return Patches(values, grid, math.prod(grid) // self._merge**2)

    def _cut_frame(self, frame: NDArray[np.uint8], size: dict[str, int]) -> tuple[torch.Tensor, tuple[int, int]]:
        """`[patches, channels, pixels]` of a frame, and its height and width in patches."""
        done = self._processor(images=[frame], size=size, input_data_format="channels_last", return_tensors="pt")
        _, height, width = done["image_grid_thw"][0].tolist()
        # The processor repeats an image as often as a patch holds frames.
        return done["pixel_values"].unflatten(1, (-1, self.temporal_patch, self._patch**2))[:, :, 0], (height, width)

    def frame_size(self, media: Media) -> dict[str, int]:
        """Fewest and most pixels of a frame, in the words of transformers."""
        if media.kind == "image":
            own = self._processor.size
            least, most = own["shortest_edge"], own["longest_edge"]
        elif self._video_size is not None:
            least, most = self._video_size
        else:
            share = _MAX_VIDEO_TOKENS * self.temporal_patch // len(media.frames)
            least = _MIN_FRAME_TOKENS * self._token_pixels
            most = max(min(_MAX_FRAME_TOKENS, share) * self._token_pixels, int(least * _LEAST_SLACK))
        if self._max_pixels is not None:
            least, most = min(least, self._max_pixels), min(most, self._max_pixels)
        return {"shortest_edge": least, "longest_edge": most}


def join_frames(frames: torch.Tensor, temporal_patch: int) -> torch.Tensor:
    """Patches of single frames -> patches that hold `temporal_patch` frames each; the last frame fills what is missing.

    Args:
        frames: `[F, patches, channels, pixels]`.
        temporal_patch: frames of a patch.

    Returns:
        `[ceil(F / temporal_patch) · patches, channels · temporal_patch · pixels]`.
    """
    missing = -len(frames) % temporal_patch
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    return frames.unflatten(0, (-1, temporal_patch)).permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1)


def _video_size(folder: Path) -> tuple[int, int] | None:
    """Fewest and most pixels of a frame as the model's own video settings say; None where it has none."""
    own = _read_json(folder / "video_preprocessor_config.json")
    settings = own or _read_json(folder / "processor_config.json").get("video_processor", {})
    size = settings.get("size") or {}
    least = settings.get("min_pixels", size.get("shortest_edge"))
    most = settings.get("max_pixels", size.get("longest_edge"))
    return None if least is None or most is None else (least, most)


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
