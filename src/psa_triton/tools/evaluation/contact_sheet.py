"""A picture of a few frames of several videos, one row a video."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from psa_triton.tools.video import Frames, enlarge, heading, to_uint8

DIFFERENCE_GAIN = 4
"""How much differences are amplified: at 1 most of them are too dark to see."""

_GAP = 4  # pixels between frames


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
