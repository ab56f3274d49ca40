"""Which implementation runs."""

import pytest
import torch

from psa_triton import impl
from psa_triton.impl import resolve_impl, triton_problem


class FakeCuda:
    """What `resolve_impl` looks at of a tensor that cannot be made here."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(1), "cpu"),
        (torch.zeros(1, dtype=torch.float64), "cpu"),
        (FakeCuda(torch.bfloat16), "triton"),
        (FakeCuda(torch.float32), "triton"),
        (FakeCuda(torch.float64), "torch"),
        (torch.zeros(1, device="meta"), "torch"),
    ],
    ids=["cpu", "cpu float64", "gpu", "gpu float32", "gpu float64", "other"],
)
def test_auto_takes_the_fastest_that_can_run(x, expected):
    assert resolve_impl("auto", x) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "torch"), ((8, 0), "triton"), ((12, 0), "triton")])
def test_gpus_without_products_of_tritons_run_torchs(capability, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert resolve_impl("auto", FakeCuda(torch.float16)) == expected
    assert resolve_impl("triton", FakeCuda(torch.float16)) == "triton"


def test_an_implementation_that_cannot_run_says_why(monkeypatch):
    with pytest.raises(ValueError, match="'cpu' expects CPU tensors, got cuda:0"):
        resolve_impl("cpu", FakeCuda(torch.float32))
    with pytest.raises(ValueError, match="'triton' computes in float32, bfloat16, float16, got torch.float64"):
        resolve_impl("triton", torch.zeros(1, dtype=torch.float64))
    assert resolve_impl("triton", torch.zeros(1)) == "triton"  # interpreted
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="'triton' expects CUDA or ROCm tensors, got cpu"):
        resolve_impl("triton", torch.zeros(1))


@pytest.mark.parametrize("version", ["3.6.0", "3.6.0+git1234", "3.10.1", "4.0.0"])
def test_new_enough_tritons(version):
    assert triton_problem(version) is None


@pytest.mark.parametrize(("version", "came"), [(None, "none is installed"), ("3.5.1", "3.5.1 is installed")])
def test_a_missing_or_old_triton_is_an_error_that_names_the_version_wanted(version, came, monkeypatch):
    monkeypatch.setattr(impl, "_TRITON_PROBLEM", triton_problem(version))
    with pytest.raises(ImportError, match=rf"needs triton >= 3\.6 and {came}; run pip install 'triton>=3.6'"):
        resolve_impl("triton", FakeCuda(torch.float32))
    assert resolve_impl("auto", FakeCuda(torch.float32)) == "torch"
