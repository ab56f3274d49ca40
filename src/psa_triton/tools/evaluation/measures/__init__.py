"""How close two videos are, frame by frame, by several measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from psa_triton.tools.evaluation.measures.ffmpeg_vmaf import vmaf
from psa_triton.tools.evaluation.measures.perceptual import st_lpips
from psa_triton.tools.evaluation.measures.pixels import PSNR_CAP, SSIM_WINDOW, ms_ssim, psnr, ssim
from psa_triton.tools.evaluation.measures.score import NotMeasured, Score

__all__ = ["MEASURES", "PSNR_CAP", "Fidelity", "Measure", "Score", "fidelity"]


@dataclass(frozen=True)
class Measure:
    """A way to say how close frames are.

    Attributes:
        label: what people call it.
        digits: decimals worth showing.
        closer: whether a `higher` or a `lower` value is closer.
        compute: from reference and video, float32 `[F, 3, H, W]` in [0, 1], to a score.
    """

    label: str
    digits: int
    closer: str
    compute: Callable[[Tensor, Tensor], Score]


MEASURES: Mapping[str, Measure] = {
    "psnr": Measure("PSNR to dense, dB", 1, "higher", psnr),
    "ssim": Measure("SSIM to dense", 3, "higher", ssim),
    "ms_ssim": Measure("MS-SSIM to dense", 3, "higher", ms_ssim),
    "st_lpips": Measure("ST-LPIPS (AlexNet) to dense", 3, "lower", st_lpips),
    "vmaf": Measure("VMAF to dense", 1, "higher", vmaf),
}
"""All measures, by the names that they have in files."""


Fidelity = Mapping[str, Score]
"""How close a video is to a reference, by each of `MEASURES`; those that could not be taken say why."""


def fidelity(reference: Tensor, video: Tensor) -> Fidelity:
    """Score each frame by each of `MEASURES`.

    Args:
        reference: `[F, H, W, 3]`, floats in [0, 1], on the device that is to do the work.
        video: the same shape and device.

    Raises:
        TypeError: a video does not hold floats.
        ValueError: the shapes differ or are not `[F, H, W, 3]`, a side is shorter than SSIM's window of 11 pixels, or
            a value is not finite or outside [0, 1].
    """
    _check("reference", reference)
    _check("video", video)
    if reference.shape != video.shape:
        raise ValueError(f"video: expected the reference's shape {list(reference.shape)}, got {list(video.shape)}")
    expected, got = (x.float().movedim(-1, 1) for x in (reference, video))
    return {name: _score(measure, expected, got) for name, measure in MEASURES.items()}


@torch.no_grad()
def _score(measure: Measure, reference: Tensor, video: Tensor) -> Score:
    try:
        return measure.compute(reference, video)
    except NotMeasured as reason:
        return Score((), str(reason))


def _check(name: str, video: Tensor) -> None:
    if not video.is_floating_point():
        raise TypeError(f"{name}: expected floats in [0, 1], got {video.dtype}")
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"{name}: expected [F, H, W, 3] with at least one frame, got {list(video.shape)}")
    if min(video.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"{name}: expected sides of at least {SSIM_WINDOW} pixels, got {list(video.shape[1:3])}")
    if not (video.min() >= 0 and video.max() <= 1):  # false for NaN too
        raise ValueError(f"{name}: expected values in [0, 1], got {float(video.min())} to {float(video.max())}")
