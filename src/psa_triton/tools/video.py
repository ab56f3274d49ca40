"""Frames as mp4 files, and videos beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple, cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Frames = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.uint8]
"""`[F, H, W, 3]` RGB: floats in [0, 1], or uint8."""

_CODEC = "libx264"
_QUALITY = "16"  # x264's constant rate factor: below 18 the loss is hard to see
_GAP = 8  # pixels between videos that stand side by side


def to_uint8(frames: Frames) -> NDArray[np.uint8]:
    """Frames as bytes; floats are clipped to [0, 1] and rounded.

    Raises:
        TypeError: frames are neither floats nor uint8.
        ValueError: the shape is not `[F, H, W, 3]` with at least one frame, or a value is NaN or infinite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames: expected [F, H, W, 3] with at least one frame, got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        return frames.astype(np.uint8, copy=False)
    if not np.issubdtype(frames.dtype, np.floating):
        raise TypeError(f"frames: expected floats in [0, 1] or uint8, got {frames.dtype}")
    if not np.isfinite(frames).all():
        raise ValueError("frames: expected finite values, got NaN or infinity")
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


class Audio(NamedTuple):
    """What is heard with a video."""

    samples: NDArray[np.float32]
    """`[channels, N]` in [-1, 1]; one channel or two."""
    rate: int
    """Samples a second."""


def encode_video(frames: Frames, *, fps: float, audio: Audio | None = None) -> bytes:
    """Frames as an mp4 (H.264, yuv420p: what every player shows), with its audio (AAC) if there is any.

    Args:
        frames: `[F, H, W, 3]` RGB, floats in [0, 1] or uint8; H and W even.
        fps: frames per second.
        audio: what is heard.

    Raises:
        TypeError: frames are neither floats nor uint8.
        ValueError: a wrong shape, a side that is not even, values that are not finite, or fps <= 0.
    """
    pixels = to_uint8(frames)
    height, width = pixels.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames: yuv420p needs an even height and width, got {height}x{width}")
    if fps <= 0:
        raise ValueError(f"fps: expected a number above 0, got {fps}")
    # In memory: it is small beside its frames, and how much room it takes is known before it is written.
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        # One thread, and no macroblock tree: with either, some videos have other bytes each time they are encoded.
        options = {"crf": _QUALITY, "threads": "1", "x264-params": "mbtree=0"}
        stream = cast(av.VideoStream, container.add_stream(_CODEC, rate=rate, options=options))
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        sound = None if audio is None else container.add_stream("aac", rate=audio.rate)
        for image in pixels:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            # Converted before the encoder has it: what it converts itself races with its threads.
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
        if audio is not None and sound is not None:
            layout = "mono" if len(audio.samples) == 1 else "stereo"
            wave = np.ascontiguousarray(audio.samples, dtype=np.float32)
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            heard.sample_rate = audio.rate
            container.mux(sound.encode(heard))
            container.mux(sound.encode())
    return buffer.getvalue()


def encode(frames: Frames, fps: float | None, audio: Audio | None = None) -> bytes:
    """Content of the file of a video, or of an image, which has no frames per second: an mp4 or a PNG."""
    return png(to_uint8(frames)[0]) if fps is None else encode_video(frames, fps=fps, audio=audio)


def expected_bytes(width: int | None, height: int | None, num_frames: int | None) -> int:
    """Size of an mp4 of such a video, roughly: a sixteenth of a byte a pixel is what the built-in model's take."""
    return (width or 1024) * (height or 1024) * (num_frames or 1) // 16 + (8 << 10)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An image `[H, W, 3]` as a PNG file's content."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def figure_png(figure: Figure, dpi: int) -> bytes:
    """A figure of matplotlib's as a PNG file's content; the same for the same figure."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def enlarge(frames: Frames, min_height: int) -> NDArray[np.uint8]:
    """Frames magnified by the least whole factor that makes them `min_height` pixels high; every pixel stays a square.

    Args:
        frames: `[F, H, W, 3]`.
        min_height: pixels; frames at least this high come back as they are.
    """
    pixels = to_uint8(frames)
    factor = max(1, -(-min_height // pixels.shape[1]))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(videos: Mapping[str, Frames], *, min_height: int = 256) -> NDArray[np.uint8]:
    """One video of several, left to right, each under its label.

    Args:
        videos: frames by label, all of one shape.
        min_height: small videos are magnified to at least this height, pixels.

    Returns:
        `[F, H', W', 3]` uint8, sides even.

    Raises:
        ValueError: there are no videos, or their shapes differ.
    """
    if not videos:
        raise ValueError("videos: expected at least one, got none")
    shapes = {label: frames.shape for label, frames in videos.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"videos: expected one shape for all, got {shapes}")
    columns = [_with_heading(enlarge(frames, min_height), label) for label, frames in videos.items()]
    gap = np.zeros_like(columns[0][:, :, :_GAP])
    joined = np.concatenate([part for column in columns for part in (gap, column)][1:], axis=2)
    odd_height, odd_width = joined.shape[1] % 2, joined.shape[2] % 2
    return np.pad(joined, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)))


def heading(text: str, width: int, height: int = 24) -> NDArray[np.uint8]:
    """White `text` on black, shrunk where it is too wide: `[height, width, 3]` uint8."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    size = float(height) * 2 / 3
    font = ImageFont.load_default(size)
    if (wide := draw.textlength(text, font) + 8) > width:
        font = ImageFont.load_default(size * width / wide)
    draw.text((4, height / 2), text, fill="white", font=font, anchor="lm")
    return np.asarray(image)


def _with_heading(pixels: NDArray[np.uint8], label: str) -> NDArray[np.uint8]:
    strip = heading(label, pixels.shape[2])
    return np.concatenate([np.broadcast_to(strip, (len(pixels), *strip.shape)), pixels], axis=1)
