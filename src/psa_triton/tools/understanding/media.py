"""Pixels out of an image or a video file: as many frames as a question about it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from psa_triton.integrations.reuse import host_memory
from psa_triton.tools.picture import open_picture, upright

MediaKind = Literal["image", "video"]

FRAMES_PER_SECOND = 2.0
"""How densely a video is sampled where nobody asks for a number of frames: as Qwen2.5-VL was trained."""
MIN_FRAMES, MAX_FRAMES = 4, 768
"""Bounds of that number, likewise."""


@dataclass(frozen=True)
class Media:
    """An image, or frames of a video.

    Attributes:
        kind: what the file holds.
        frames: `[F, H, W, 3]` uint8, RGB; one frame of an image.
        fps: sampled frames per second of video; 0 for an image.
        total_frames: frames in the file.
    """

    kind: MediaKind
    frames: NDArray[np.uint8]
    fps: float
    total_frames: int


def check_media(path: str | Path, kind: MediaKind, *, num_frames: int | None = None) -> None:
    """Check what takes no time to: the arguments of `read_media`, and that the file can be opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened or is of the other kind; `num_frames` is below 1, or was given for an image.
    """
    path = Path(path)
    if kind not in get_args(MediaKind):
        raise ValueError(f"type: expected one of {', '.join(get_args(MediaKind))}, got {kind!r}")
    if num_frames is not None and kind == "image":
        raise ValueError(f"num_frames: expected it with a video, got {num_frames} with an image")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames: expected at least 1, got {num_frames}")
    if not path.is_file():
        raise FileNotFoundError(f"input: there is no file {path}")
    with open_picture(path, "input", "; a video needs type video") if kind == "image" else _open_video(path):
        pass


def read_media(path: str | Path, kind: MediaKind, *, num_frames: int | None = None) -> Media:
    """Read an image, or evenly spread frames of a video.

    Args:
        path: an image that PIL reads, or a video that FFmpeg reads.
        kind: which of the two it is.
        num_frames: frames of a video, from its first to its last; all frames of a video that has fewer. By default
            two a second, at least 4 and at most 768.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is of the other kind, or has no frames; `num_frames` is below 1, more than fit
            into memory, or was given for an image.
    """
    check_media(path, kind, num_frames=num_frames)
    return _read_image(Path(path)) if kind == "image" else _read_video(Path(path), num_frames)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        with av.open(str(path)) as container:
            # FFmpeg reads images too, as videos of one frame.
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                raise ValueError(f"input: expected a video, got the image {path}; it needs type image")
            if not container.streams.video:
                raise ValueError(f"input: expected a video, got {path}, which has none")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise ValueError(f"input: the video {path} cannot be read: {error.strerror}") from error


def _read_image(path: Path) -> Media:
    with open_picture(path, "input") as image:
        return Media("image", np.asarray(upright(image))[None], fps=0.0, total_frames=1)


def _read_video(path: Path, num_frames: int | None) -> Media:
    total, fps = _measure(path)
    if num_frames is None:
        num_frames = round(min(max(total / fps * FRAMES_PER_SECOND, MIN_FRAMES), MAX_FRAMES))
    wanted = np.linspace(0, total - 1, min(num_frames, total)).round().astype(int)
    frames = _decode(path, set(wanted.tolist()))
    if not frames:
        raise ValueError(f"input: expected a video, got {path}, of which no frame can be decoded")
    return Media("video", np.stack(frames), fps=len(frames) / total * fps, total_frames=total)


def _measure(path: Path) -> tuple[int, float]:
    """Number of frames, and how many make a second; nothing is decoded, so that hours of video take seconds."""
    with _open_video(path) as (container, stream):
        total = sum(packet.size > 0 for packet in container.demux(stream))
        if total == 0:
            raise ValueError(f"input: expected a video, got {path}, which has no frames")
        return total, float(stream.average_rate or stream.guessed_rate or FRAMES_PER_SECOND)


def _decode(path: Path, wanted: set[int]) -> list[NDArray[np.uint8]]:
    """The frames at these places, upright and of one size; those that a damaged file does not have are left out."""
    frames: list[NDArray[np.uint8]] = []
    last = max(wanted)
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        width, height = stream.width, stream.height  # of the first frames: a recorded call has others later
        if (needed := 2 * 3 * width * height * len(wanted)) > (memory := host_memory()):
            raise ValueError(
                f"num_frames: expected frames that fit into this machine's {memory / 2**30:.1f} GiB of memory, got "
                f"{len(wanted)} of {width} x {height} pixels, which take {needed / 2**30:.1f} GiB while they are read; "
                "ask for fewer (--preprocess-frames), or a smaller video"
            )
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                pixels = frame.reformat(width, height, "rgb24").to_ndarray().astype(np.uint8, copy=False)
                frames.append(np.rot90(pixels, frame.rotation // 90))
            if index == last:
                break
    return frames
