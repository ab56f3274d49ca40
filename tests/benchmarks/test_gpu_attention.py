"""The GPU benchmark, rehearsed in Triton's interpreter: what it compares is right, what fails is passed over."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import gpu_attention
from gpu import ab, checks, measure, prepare
from gpu.cases import SHAPES, Inputs, presets_of, small
from gpu.checks import smoke_checks
from harness import Run
from programs import python

from psa_triton.kernels import pyramid_attention

CPU = torch.device("cpu")
SCRIPT = Path(gpu_attention.__file__)
WITHOUT_OTHER_PACKAGES = """
import importlib.util, runpy, sys
script, *missing = sys.argv[1].split(",")
sys.modules.update(dict.fromkeys(missing))
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *others: None if name in missing else find_spec(name, *others)
sys.argv[:] = [script, *sys.argv[2:]]
sys.path.insert(0, script.rpartition("/")[0])
runpy.run_path(script, run_name="__main__")
"""
without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU times what it runs")


@without_a_gpu
def test_quick_with_torch_and_triton_alone(tmp_path):
    missing = ",".join([str(SCRIPT), "pydantic", "yaml", "rich", "diffusers", "transformers"])
    done = python("-c", WITHOUT_OTHER_PACKAGES, missing, "--quick", "--output", tmp_path, TRITON_INTERPRET="1")
    (page,), (file,) = tmp_path.glob("*.md"), tmp_path.glob("*.json")
    pieces = json.loads(file.read_text())["pieces"]
    failed = {name: why for name, found in pieces.items() if (why := gpu_attention.failure(found))}
    # cuDNN's attention is the one thing that a CPU has not, and it is said.
    assert list(failed) == ["Wan 720p, 12 heads: dense, cudnn"], failed
    assert done.returncode == 1 and "presets: pydantic or yaml is missing" in done.stdout
    assert max(pieces["Wan 720p, 12 heads: right"]["errors"].values()) <= 1
    assert "not measured" in page.read_text() and "No viable backend" in page.read_text()


@without_a_gpu
def test_without_a_gpu_it_says_what_runs(tmp_path):
    done = python(SCRIPT, "--output", tmp_path, TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert "no GPU found; TRITON_INTERPRET=1 rehearses this script on tiny shapes" in done.stderr


@pytest.mark.parametrize("shape", SHAPES[2:4], ids=lambda shape: shape.name)
def test_a_preset_of_models_with_a_prefix_and_a_causal_mask_is_measured(shape):
    x = Inputs.draw(small(shape), CPU)
    found = measure.measure_preset(x, presets_of(shape)[0])
    assert 0 < found["density"] <= 1
    assert {"importance", "levels", "kernels", "density", "whole"} <= set(found["steps_ms"])
    assert {"attend", "list_blocks", "pool", "score"} <= set(found["kernels_ms"])


def test_what_is_compiled_beforehand_is_what_runs():
    """Every launch of a piece has the types, constants and special integers of one that was foreseen."""
    shape = small(SHAPES[0])
    foreseen = {prepare._key(launch) for launch in prepare.recorded(measure.launching, [shape], True)}
    ran = prepare.record_launches(lambda: list(measure.launching(CPU, [shape], True))[-1]())
    assert len(ran) > 5 and {prepare._key(launch) for launch in ran} <= foreseen


def test_every_kernel_before_the_attention_compiles(tmp_path):
    """What the interpreter runs the compiler may refuse. Those of the attention: `test_compiled_kernels.py`."""
    code = """
from triton.backends.compiler import GPUTarget
import gpu_attention, gpu.prepare as p
launches = p.recorded(gpu_attention.smoke_work, target="sm_90")
last = {x.kernel.fn.__name__: x for x in launches if "kernels.triton" not in x.kernel.fn.__module__}
for launch in last.values():
    p.compile_launch(launch, GPUTarget("cuda", 90, 32))
print(*sorted(last))
"""
    where = {"PYTHONPATH": f"{SCRIPT.parent}:{SCRIPT.parents[1] / 'src'}", "TRITON_CACHE_DIR": str(tmp_path)}
    done = python("-c", code, TRITON_INTERPRET="0", **where)
    assert done.returncode == 0, done.stderr
    kernels = done.stdout.split()
    assert {"_score_kernel", "_assign_levels_kernel", "_caps_kernel", "_read_shares_kernel"} <= set(kernels)
    assert len(list(tmp_path.glob("*/*.cubin"))) == len(kernels)


@pytest.mark.parametrize(("target", "left_out"), [("interpreter", {"_attend_tma_kernel"}), ("sm_90", set())])
def test_smoke_launches_every_kernel(target, left_out):
    launches = prepare.recorded(gpu_attention.smoke_work, target=target)
    assert {launch.kernel.fn.__name__ for launch in launches} == gpu_attention.known_kernels() - left_out


@pytest.mark.parametrize(
    "name",
    [
        "attention, n=64, D=128, causal, in 8 bits",
        "attention, n=32, D=64, causal, keys left out",
        "importance, pooled",
        "levels by shares",
        "similarity caps",
        "density",
    ],
)
def test_smoke_checks_pass_and_find_what_is_wrong(name):
    check = next(check for check in smoke_checks(CPU) if check.name == name)
    assert max(check.errors().values()) <= 1
    run = check.run

    def spoilt(impl, dtype):
        return {name: x + (impl == "triton") for name, x in run(impl, dtype).items()}

    object.__setattr__(check, "run", spoilt)
    assert not max(check.errors().values()) <= 1


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=lambda shape: shape.name)
def test_rows_of_large_shapes_are_checked(shape, monkeypatch):
    x = Inputs.draw(small(shape), CPU)
    monkeypatch.setattr(checks, "sparse", lambda x, levels: pyramid_attention(*x.tensors(), levels, **marks))
    marks = dict(block_m=128, block_n=64, is_causal=shape.is_causal, impl="reference")
    assert max(checks.check_rows(x).values()) <= 1
    monkeypatch.setattr(checks, "sparse", lambda x, levels: pyramid_attention(*x.tensors(), levels * 0 + 1, **marks))
    assert min(checks.check_rows(x).values()) > 1


def test_a_failed_piece_is_written_down_and_passed_over(tmp_path):
    session = gpu_attention.Session(Run("x", tmp_path), minutes=7)
    assert session.measure("a: bad", lambda: 1 / 0) == {"failed": "ZeroDivisionError: division by zero"}
    assert session.measure("a: wrong", lambda: {"errors": {"output": 3.0}}) == {"errors": {"output": 3.0}}
    session.write(gpu_attention.page)
    assert "output is 3.00 of what is allowed" in next(tmp_path.glob("x_*.md")).read_text()
    assert Run("x", tmp_path).piece("a: bad", pytest.fail) is not None  # an interrupted run goes on after it
    late = gpu_attention.Session(Run("y", tmp_path), minutes=-1000)
    assert late.measure("b", pytest.fail) == {"failed": "left out, the time is up"}


def test_two_checkouts_are_compared_in_turn(tmp_path):
    script = tmp_path / "newer" / "benchmarks" / "script.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import json, os, pathlib, sys\n"
        "out = pathlib.Path(sys.argv[-1]); out.mkdir()\n"
        "pieces = {'a': {'kernels_ms': {'attend': 3.0 if os.environ['PSA_CHECKOUT'].endswith('older') else 2.0}}}\n"
        "(out / 'x.json').write_text(json.dumps({'pieces': pieces}))\n"
    )
    older = tmp_path / "older"
    older.mkdir()
    found = ab.compare(str(older), script, 1.0)
    assert ab.rows(found) == [["a: kernels_ms: attend", "3.000", "2.000", "0.667", "0.0%"]]
