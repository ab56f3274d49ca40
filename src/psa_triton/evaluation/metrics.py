"""How close two videos are, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

PSNR_CAP = 100.0
"""dB. Equal frames have an infinite PSNR, which no mean survives and JSON cannot hold; 8-bit video ends at 59 dB."""

_SSIM_WINDOW = 11  # pixels: a Gaussian of sigma 1.5, Wang et al. 2004


@dataclass(frozen=True)
class Fidelity:
    """PSNR and SSIM of a video against a reference.

    Attributes:
        psnr_frames: dB, one a frame, at most `PSNR_CAP`.
        ssim_frames: one a frame, 1 for equal frames.
    """

    psnr_frames: tuple[float, ...]
    ssim_frames: tuple[float, ...]

    @property
    def psnr(self) -> float:
        """Mean over the frames, dB."""
        return fmean(self.psnr_frames)

    @property
    def ssim(self) -> float:
        """Mean over the frames."""
        return fmean(self.ssim_frames)


def fidelity(reference: torch.Tensor, video: torch.Tensor) -> Fidelity:
    """PSNR and SSIM of each frame, over its pixels and channels.

    Args:
        reference: `[F, H, W, 3]`, floats in [0, 1].
        video: the same shape.

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
    # torchmetrics turns an equal frame's PSNR into infinity; the cap makes it a number again.
    psnr = peak_signal_noise_ratio(got, expected, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(got, expected, data_range=1.0, reduction="none")
    # With other arguments torchmetrics would give a pair here.
    assert isinstance(ssim, torch.Tensor)
    return Fidelity(tuple(psnr.clamp(max=PSNR_CAP).tolist()), tuple(ssim.tolist()))


def _check(name: str, video: torch.Tensor) -> None:
    if not video.is_floating_point():
        raise TypeError(f"{name}: expected floats in [0, 1], got {video.dtype}")
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"{name}: expected [F, H, W, 3] with at least one frame, got {list(video.shape)}")
    if min(video.shape[1:3]) < _SSIM_WINDOW:
        raise ValueError(f"{name}: expected sides of at least {_SSIM_WINDOW} pixels, got {list(video.shape[1:3])}")
    if not (video.min() >= 0 and video.max() <= 1):  # false for NaN too
        raise ValueError(f"{name}: expected values in [0, 1], got {float(video.min())} to {float(video.max())}")
