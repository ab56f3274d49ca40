"""VMAF (Netflix, model v0.6.1) by an ffmpeg that has libvmaf, such as the one inside the package `imageio-ffmpeg`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

from torch import Tensor

from psa_triton.tools.evaluation.measures.score import NotMeasured, Score
from psa_triton.tools.video import to_uint8

_LOG: Final = "vmaf.json"
_GRAPH: Final = f"[0:v]format=yuv420p[v];[1:v]format=yuv420p[r];[v][r]libvmaf=log_fmt=json:log_path={_LOG}"
_FULL_HD: Final = 1080
_LEAST_SIDE: Final = 32  # pixels: below 17 libvmaf ends without a word


def vmaf(reference: Tensor, video: Tensor) -> Score:
    """0 to 100 for 8-bit frames in 4:2:0; frames `[F, 3, H, W]` in [0, 1]. Equal frames get a little less than 100.

    Raises:
        NotMeasured: there is no ffmpeg with libvmaf, it failed, or the frames are too small.
    """
    ffmpeg = _ffmpeg()
    height, width = reference.shape[-2:]
    if min(height, width) < _LEAST_SIDE:
        raise NotMeasured(f"frames of {min(height, width)} pixels are too small, at least {_LEAST_SIDE} are needed")
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", "24"]
    with tempfile.TemporaryDirectory() as folder:
        for name, frames in (("video", video), ("reference", reference)):
            (Path(folder) / name).write_bytes(to_uint8(frames.movedim(1, -1).cpu().numpy()).tobytes())
        inputs = [*raw, "-i", "video", *raw, "-i", "reference"]
        command = [ffmpeg, "-v", "error", *inputs, "-lavfi", _GRAPH, "-f", "null", "-"]
        # The log's path is part of a filter's text, where a `:` or `'` would need quotes: hence the working folder.
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise NotMeasured(f"ffmpeg failed with code {done.returncode}: {done.stderr.strip()[-200:]}")
        log = json.loads((Path(folder) / _LOG).read_text(encoding="utf-8"))
    note = f"the model is made for {_FULL_HD} lines, the frames have {height}" if height != _FULL_HD else None
    return Score(tuple(float(frame["metrics"]["vmaf"]) for frame in log["frames"]), note)


@lru_cache(maxsize=1)
def _ffmpeg() -> str:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise NotMeasured("needs an ffmpeg with libvmaf: pip install 'psa-triton[vmaf]'") from error
    try:
        path = str(get_ffmpeg_exe())
    except RuntimeError as error:
        raise NotMeasured("imageio-ffmpeg has no ffmpeg for this machine, and there is none on the PATH") from error
    filters = subprocess.run([path, "-hide_banner", "-filters"], capture_output=True, text=True, check=True).stdout
    if " libvmaf " not in filters:
        raise NotMeasured(f"{Path(path).name} is built without libvmaf")
    return path
