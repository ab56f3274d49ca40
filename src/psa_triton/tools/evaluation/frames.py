"""Frames of several videos as pictures: a sheet of a few, one row a video, and all of them inside a web page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psa_triton.tools.video import Frames, enlarge, heading, to_uint8

_QUALITY: Final = 88
"""WebP's, where frames are too large to be kept exactly: below 80 its blocks show in an amplified difference."""
DIFFERENCE_GAIN: Final = 4
"""How much differences are amplified: at 1 most of them are too dark to see."""

_GAP: Final = 4  # pixels between frames


def contact_sheet(
    reference: Frames, videos: Mapping[str, Frames], *, columns: int = 6, min_height: int = 160
) -> NDArray[np.uint8]:
    """Rows of frames: the dense video, then each other video and its difference from the dense one, amplified.

    Args:
        reference: `[F, H, W, 3]`, the dense video.
        videos: the others by label, same shape.
        columns: at most this many frames of each, evenly spaced, first and last included.
        min_height: small frames are magnified to at least this height, pixels.

    Returns:
        `[H', W', 3]` uint8.
    """
    chosen = np.unique(np.linspace(0, len(reference) - 1, columns).round().astype(int))
    dense = to_uint8(reference)[chosen]
    numbers = ", ".join(str(index + 1) for index in chosen)
    rows = {f"dense, frames {numbers}": dense}
    for label, frames in videos.items():
        pixels = to_uint8(frames)[chosen]
        rows[label] = pixels
        rows[f"difference of {label} and dense, x{DIFFERENCE_GAIN}"] = _difference(dense, pixels)
    return np.concatenate([_row(label, enlarge(frames, min_height)) for label, frames in rows.items()])


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    apart = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return (apart * DIFFERENCE_GAIN).clip(max=255).astype(np.uint8)


def _row(label: str, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.pad(frames, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)))
    strip = np.concatenate(list(padded), axis=1)
    return np.concatenate([heading(label, strip.shape[1]), strip])


def web_frames(videos: Mapping[str, Frames], *, max_bytes: int = 24 << 20) -> tuple[dict[str, list[str]], bool]:
    """Videos as WebP images: exact ones if by the size of the first frames all are likely to fit, else compressed ones.

    Images, drawn on a canvas, and not the mp4 files: a page then has two videos on exactly the same frame at any time,
    which browsers do not promise for video elements, and it sees the pixels that the model made and can take their
    difference.

    Args:
        videos: `[F, H, W, 3]` by label, all of one shape.
        max_bytes: of all exact images together.

    Returns:
        By label a `data:` URI a frame, and whether every pixel is the one that was made, in 8 bits.
    """
    pixels = {label: to_uint8(frames) for label, frames in videos.items()}
    expected = sum(len(_webp(frames[0], exact=True)) * len(frames) for frames in pixels.values())
    exact = expected <= max_bytes
    return {label: [_uri(_webp(frame, exact=exact)) for frame in frames] for label, frames in pixels.items()}, exact


def _webp(frame: NDArray[np.uint8], *, exact: bool) -> bytes:
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "WEBP", lossless=exact, quality=_QUALITY)
    return buffer.getvalue()


def _uri(image: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(image).decode('ascii')}"
