"""The kernels as launched, compiled for GPUs that are not there: nothing spills, products run on tensor cores."""

import json

import pytest
from programs import ROOT, python

pytest.importorskip("triton")

TENSOR_CORE = {
    "sm_80": "HMMA",
    "sm_86": "HMMA",
    "sm_89": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
    "gfx942": "MFMA",
}
"""The target's own instruction for products; tiles of fewer than 64 rows take the older HMMA."""
FULL_TILES = {"attend", "query_gradient", "row_gradient level 1", "score"}
"""Kernels whose tiles are large enough for it."""
NVIDIA = tuple(target for target in TENSOR_CORE if target.startswith("sm"))

QUICK = ("sm_86", "sm_90", "gfx942")


def compile_kernels(folder, *arguments):
    """What `benchmarks/compiled_kernels.py` writes, run where kernels are not for the interpreter."""
    result = folder / "kernels.json"
    script = ROOT / "benchmarks" / "compiled_kernels.py"
    done = python(script, "--json", result, *arguments, timeout=7200, TRITON_INTERPRET="0")
    assert result.exists(), done.stderr
    return json.loads(result.read_text())["kernels"]


def of_target(kernels, target, dtypes=("bf16", "fp16")):
    """The kernels for inputs of `dtypes`, all of which must have compiled."""
    found = [k for k in kernels if k["case"]["target"] == target and k["case"]["dtype"] in dtypes]
    assert [(k["kernel"], k["case"], k["error"]) for k in found if k["error"]] == []
    assert {k["kernel"] for k in found} >= FULL_TILES
    return found


def check_no_spills(kernels):
    assert [(k["kernel"], k["case"], k["local"]) for k in kernels if k["local"]] == []


def check_tensor_cores(kernels, target):
    """Every product runs on tensor cores, and those of full tiles by the target's own instruction.

    float32 tiles are too small for it: three products of TF32 take the registers.
    """
    products = [k for k in kernels if k["dots"]]
    assert {k["kernel"] for k in products} >= FULL_TILES
    assert [(k["kernel"], k["case"]) for k in products if not k["tensor_core"]] == []
    own = [k for k in products if TENSOR_CORE[target] in k["tensor_core"]]
    if kernels[0]["case"]["dtype"] != "fp32":
        assert {k["kernel"] for k in own} >= FULL_TILES


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """bf16 at D = 128 and, for NVIDIA, fp16 at D = 64, on the targets that `make test` has time for."""
    return compile_kernels(tmp_path_factory.mktemp("quick"), "--quick", "--target", *QUICK)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every dtype and head dimension, other blocks, causal masks."""
    return compile_kernels(tmp_path_factory.mktemp("everything"))


@pytest.mark.parametrize("target", [target for target in QUICK if target in NVIDIA])
def test_nothing_spills(quick, target):
    check_no_spills(of_target(quick, target))


def test_full_tiles_of_the_forward_on_hopper(quick):
    """A tile has 128 keys; what its instructions take to issue is less than the matrix unit takes."""
    (attend,) = (k for k in of_target(quick, "sm_90") if k["kernel"] == "attend" and k["case"]["dtype"] == "bf16")
    assert attend["loops"][0]["instructions"] <= 2 * 330
    assert attend["in_flight"] >= 2


def test_the_forward_by_tma(quick):
    found = [k for k in of_target(quick, "sm_90") if k["kernel"] == "attend_tma"]
    assert {k["case"]["dim"] for k in found} == {64, 128}
    for made in found:
        assert made["tma"] and set(made["tensor_core"]) == {"HGMMA"}
        assert [loop["instructions"] <= 2 * 360 for loop in made["loops"]] == [True, True]  # 718 by Triton 3.8


@pytest.mark.parametrize("target", QUICK)
def test_products_run_on_tensor_cores(quick, target):
    check_tensor_cores(of_target(quick, target), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", NVIDIA)
def test_nothing_spills_at_any_size(everything, target):
    check_no_spills(of_target(everything, target))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("target", TENSOR_CORE)
def test_products_run_on_tensor_cores_at_any_size(everything, target, dtype):
    check_tensor_cores(of_target(everything, target, (dtype,)), target)
