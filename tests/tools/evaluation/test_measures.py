import importlib
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from psa_triton.tools.evaluation.measures import MEASURES, PSNR_CAP, Score, fidelity
from psa_triton.tools.evaluation.measures.ffmpeg_vmaf import vmaf
from psa_triton.tools.evaluation.measures.perceptual import find_weights, st_lpips
from psa_triton.tools.evaluation.measures.pixels import ms_ssim
from psa_triton.tools.evaluation.measures.score import NotMeasured

needs_weights = pytest.mark.skipif(find_weights() is None, reason="stlpips-pytorch, which holds weights, is missing")


def has_vmaf():
    try:
        vmaf(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
    except NotMeasured:
        return False
    return True


needs_vmaf = pytest.mark.skipif(not has_vmaf(), reason="no ffmpeg with libvmaf (pip install imageio-ffmpeg)")


def grey(*values):
    """One frame a value."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 16, 24, 3).clone()


def pictures(*shape, noise=0.1):
    """Frames `shape` of noise, and the same with a little more of it."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(shape, generator=generator)
    return first, (first + noise * torch.randn(shape, generator=generator)).clamp(0, 1)


def test_psnr_by_hand_frame_by_frame():
    # Errors of .1 and .01 everywhere, mean squares of 1e-2 and 1e-4; equal frames do not swallow the others.
    scores = fidelity(grey(0.5, 0.5, 0.5), grey(0.6, 0.49, 0.5))
    assert scores["psnr"].frames == pytest.approx((20.0, 40.0, PSNR_CAP), abs=1e-3)
    assert scores["psnr"].mean == pytest.approx((60 + PSNR_CAP) / 3, abs=1e-3)


def test_ssim_of_plain_frames_by_hand():
    # Without variance SSIM is its luminance term, with c1 = (.01)^2.
    scores = fidelity(grey(0.5, 0.2), grey(0.6, 0.2))
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert scores["ssim"].frames == pytest.approx((expected, 1.0), abs=1e-4)


@pytest.mark.parametrize(("side", "scales"), [(44, 3), (98, 3), (99, 4), (175, 4), (176, 5)])
def test_ms_ssim_takes_as_many_scales_as_fit(side, scales):
    score = ms_ssim(*pictures(2, 3, side, side))
    assert len(score.frames) == 2
    assert 0.5 < score.mean < 1
    assert score.note == (None if scales == 5 else f"{scales} scales instead of 5, as frames are small")


def test_ms_ssim_weights_sum_to_one():
    """Of plain frames only the coarsest scale differs from 1: its luminance to the power of its weight."""
    luminance = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    score = ms_ssim(torch.full((1, 3, 64, 64), 0.5), torch.full((1, 3, 64, 64), 0.6))
    assert score.mean == pytest.approx(luminance ** (0.3001 / (0.0448 + 0.2856 + 0.3001)), abs=1e-4)


def test_a_measure_that_cannot_be_taken_says_why_and_stops_no_other():
    scores = fidelity(grey(0.5), grey(0.6))
    assert scores["ms_ssim"] == Score((), "frames of 16 pixels are too small for 3 scales")
    assert scores["ms_ssim"].mean is None
    assert scores["psnr"].mean == pytest.approx(20, abs=1e-3)
    assert set(scores) == set(MEASURES)


@needs_weights
def test_st_lpips_is_that_of_its_authors(monkeypatch):
    """Their code runs with stand-ins for three packages that it imports and does not use here."""
    for name in ("torchvision", "torchvision.models", "IPython", "torchsummary"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    sys.modules["IPython"].embed = sys.modules["torchsummary"].summary = None
    theirs = importlib.import_module("stlpips_pytorch.stlpips").LPIPS(
        net="alex", variant="shift_tolerant", verbose=False
    )
    reference, video = pictures(5, 3, 40, 48)
    with torch.no_grad():
        expected = theirs(reference, video, normalize=True).flatten().tolist()
    assert st_lpips(reference, video).frames == pytest.approx(expected, rel=1e-5)
    assert st_lpips(reference, reference).mean == 0


def test_without_weights_st_lpips_says_what_to_install(monkeypatch):
    monkeypatch.setattr("psa_triton.tools.evaluation.measures.perceptual.find_spec", lambda _: None)
    with pytest.raises(NotMeasured, match=r"psa-triton\[lpips\]"):
        st_lpips(*pictures(1, 3, 32, 32))


@needs_vmaf
def test_vmaf_falls_with_noise():
    reference, little = pictures(3, 3, 64, 80, noise=0.02)
    _, much = pictures(3, 3, 64, 80, noise=0.3)
    same, near, far = (vmaf(reference, video) for video in (reference, little, much))
    assert len(same.frames) == 3
    assert same.mean > near.mean > far.mean
    assert same.mean > 90
    assert "1080" in same.note


def test_without_ffmpeg_vmaf_says_what_to_install(monkeypatch):
    from psa_triton.tools.evaluation.measures.ffmpeg_vmaf import _ffmpeg

    _ffmpeg.cache_clear()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(NotMeasured, match=r"psa-triton\[vmaf\]"):
        vmaf(*pictures(1, 3, 64, 64))


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
def test_what_cannot_be_scored_is_refused(reference, video, error, message):
    with pytest.raises(error, match=message):
        fidelity(reference, video)
