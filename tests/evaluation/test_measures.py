from __future__ import annotations

import math

import pytest
import torch

from psa_triton.evaluation import PSNR_CAP, fidelity


def grey(*values: float) -> torch.Tensor:
    """One frame a value."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 16, 24, 3).clone()


def test_psnr_by_hand_frame_by_frame() -> None:
    # Errors of .1 and .01 everywhere: mean squares of 1e-2 and 1e-4.
    scores = fidelity(grey(0.5, 0.5), grey(0.6, 0.49))
    assert scores.psnr_frames == pytest.approx((20.0, 40.0), abs=1e-3)
    assert scores.psnr == pytest.approx(30.0, abs=1e-3)


def test_ssim_of_plain_frames_by_hand() -> None:
    # Without variance SSIM is its luminance term, with c1 = (.01)^2.
    scores = fidelity(grey(0.5, 0.2), grey(0.6, 0.2))
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert scores.ssim_frames == pytest.approx((expected, 1.0), abs=1e-4)


def test_psnr_of_noise_is_that_of_its_mean_square() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, video = torch.rand(3, 16, 16, 3, generator=generator), torch.rand(3, 16, 16, 3, generator=generator)
    expected = [-10 * math.log10(float(x)) for x in (reference - video).square().mean((1, 2, 3))]
    assert fidelity(reference, video).psnr_frames == pytest.approx(expected, rel=1e-4)


def test_equal_frames_have_the_capped_psnr_and_do_not_swallow_the_others() -> None:
    scores = fidelity(grey(0.5, 0.5), grey(0.5, 0.6))
    assert scores.psnr_frames == pytest.approx((PSNR_CAP, 20.0), abs=1e-3)
    assert scores.ssim_frames[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reference", "video", "error", "message"),
    [
        pytest.param(grey(0.5), grey(0.5, 0.5), ValueError, "reference's shape", id="frame-count"),
        pytest.param(grey(0.5), grey(1.5), ValueError, r"video: expected values in \[0, 1\]", id="range"),
        pytest.param(grey(math.nan), grey(0.5), ValueError, "reference: expected values", id="nan"),
        pytest.param(grey(0.5), grey(0.5).mul(255).byte(), TypeError, "uint8", id="bytes"),
        pytest.param(grey(0.5)[0], grey(0.5)[0], ValueError, r"\[F, H, W, 3\]", id="rank"),
        pytest.param(grey(0.5)[:, :8], grey(0.5)[:, :8], ValueError, "11 pixels", id="smaller-than-window"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    reference: torch.Tensor, video: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fidelity(reference, video)
