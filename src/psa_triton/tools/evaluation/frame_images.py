"""Frames of videos as images inside a web page.

Images, drawn on a canvas, and not the mp4 files: a page then has two videos on exactly the same frame at any time,
which browsers do not promise for video elements, and it sees the pixels that the model made and can take their
difference.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psa_triton.tools.video import Frames, to_uint8

_QUALITY: Final = 88
"""WebP's, where frames are too large to be kept exactly: below 80 its blocks show in an amplified difference."""


@dataclass(frozen=True)
class FrameImages:
    """Videos as images.

    Attributes:
        videos: by label, a `data:` URI a frame.
        exact: whether every pixel is the one that was made, in 8 bits.
    """

    videos: Mapping[str, list[str]]
    exact: bool


def encode_frames(videos: Mapping[str, Frames], *, max_bytes: int = 24 << 20) -> FrameImages:
    """Videos as WebP images: exact ones if by the size of the first frames all are likely to fit, else compressed ones.

    Args:
        videos: `[F, H, W, 3]` by label, all of one shape.
        max_bytes: of all exact images together.
    """
    pixels = {label: to_uint8(frames) for label, frames in videos.items()}
    expected = sum(len(_webp(frames[0], exact=True)) * len(frames) for frames in pixels.values())
    exact = expected <= max_bytes
    return FrameImages(
        {label: [_data_uri(_webp(frame, exact=exact)) for frame in frames] for label, frames in pixels.items()}, exact
    )


def _webp(frame: NDArray[np.uint8], *, exact: bool) -> bytes:
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "WEBP", lossless=exact, quality=_QUALITY)
    return buffer.getvalue()


def _data_uri(image: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(image).decode('ascii')}"
