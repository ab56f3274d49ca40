"""Measures of the pixels themselves: PSNR, SSIM and MS-SSIM, by torchmetrics, over all channels of a frame."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from psa_triton.tools.evaluation.measures.score import NotMeasured, Score

PSNR_CAP = 100.0
"""dB. Equal frames have an infinite PSNR, which no mean survives and JSON cannot hold; 8-bit video ends at 59 dB."""

SSIM_WINDOW = 11  # pixels: a Gaussian of sigma 1.5, Wang et al. 2004

_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest first, Wang et al. 2003
_FEWEST_SCALES = 3


def psnr(reference: Tensor, video: Tensor) -> Score:
    """dB, at most `PSNR_CAP`; frames `[F, 3, H, W]` in [0, 1]."""
    # torchmetrics turns an equal frame's PSNR into infinity; the cap makes it a number again.
    values = peak_signal_noise_ratio(video, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return Score(tuple(values.clamp(max=PSNR_CAP).tolist()))


def ssim(reference: Tensor, video: Tensor) -> Score:
    """Structural similarity, 1 for equal frames; frames `[F, 3, H, W]` in [0, 1]."""
    values = structural_similarity_index_measure(video, reference, data_range=1.0, reduction="none")
    # With other arguments torchmetrics would give a pair here.
    assert isinstance(values, Tensor)
    return Score(tuple(values.tolist()))


def ms_ssim(reference: Tensor, video: Tensor) -> Score:
    """SSIM at several scales, each half the one before; frames `[F, 3, H, W]` in [0, 1].

    The standard has 5 scales. Small frames get fewer, whose weights are divided by their sum.

    Raises:
        NotMeasured: the frames are too small for 3 scales.
    """
    side = min(reference.shape[-2:])
    scales = len(_SCALE_WEIGHTS)
    while side // max(1, scales - 1) ** 2 < SSIM_WINDOW:  # torchmetrics' condition
        scales -= 1
    if scales < _FEWEST_SCALES:
        raise NotMeasured(f"frames of {side} pixels are too small for {_FEWEST_SCALES} scales")
    weights = _SCALE_WEIGHTS[:scales]
    betas = tuple(weight / sum(weights) for weight in weights)
    values = multiscale_structural_similarity_index_measure(
        video, reference, data_range=1.0, reduction="none", betas=betas
    )
    note = f"{scales} scales instead of {len(_SCALE_WEIGHTS)}, as frames are small"
    return Score(tuple(values.tolist()), note if scales < len(_SCALE_WEIGHTS) else None)
