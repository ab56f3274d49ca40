"""The node inside a checkout of ComfyUI, which the environment variable COMFYUI names; see `comfyui_host.py`.

COMFYUI_PYTHON may name a Python that has what ComfyUI needs, and torch; by default the one that runs the tests.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = {"wan": 256, "hunyuan": 272, "ltx": 256, "flux": 272, "ltx-av": 256, "minimax-h3": 290}
"""Tokens of the video, and in front of it."""


@pytest.fixture(scope="module")
def result():
    if "COMFYUI" not in os.environ:
        pytest.skip("COMFYUI names no checkout of ComfyUI")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(Path(__file__).parent / "comfyui_host.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.mark.parametrize("name", MODELS)
def test_small_models_run_sparse_and_dense(name, result):
    found, log = result[name], "\n".join(result[name]["log"])
    assert found["dense_is_equal"]
    assert 0 < found["apart"] < 0.5
    assert re.search(rf"PSA: {MODELS[name]} tokens, 4 heads of 24: \d calls sparse, density 0\.[3-7]", log)
    assert found["clone_is_alike"]
    assert found["logs_again"] == []
    assert found["original_is_untouched"]


def test_samplers_and_starts_in_the_middle(result):
    outcomes = {
        name: "".join("s" if "sparse" in line else "d" for line in result["samplings"][name])
        for name in ("no_guidance", "from_the_middle", "between_levels", "two_evaluations")
    }
    # Four steps, start_percent at half of them; dpmpp_sde and heun evaluate twice in each but the last.
    assert outcomes == {
        "no_guidance": "ddss",
        "from_the_middle": "ss",
        "between_levels": "ddddsss",
        "two_evaluations": "dddssss",
    }


def test_error_control_comes_closer(result):
    refresh, bound = (result["samplings"][name] for name in ("refresh", "max_error"))
    ways = [re.search(r"calls (\w+)", line)[1] for line in refresh["log"]]
    assert ways == ["refresh", "sparse", "sparse", "refresh", "sparse", "sparse", "refresh", "sparse"]
    assert refresh["apart"] < result["wan"]["apart"]
    for log, limit in ((refresh["log"], 0.05), (bound["log"], 0.021)):
        errors = [float(match[1]) for line in log if (match := re.search(r"measured error ([\d.]+)", line))]
        assert errors
        assert max(errors) <= limit


def test_a_compiled_model_is_the_same(result):
    assert result["samplings"]["compiled_is_apart"] < 1e-5


def test_the_folder_is_loaded_under_any_name(result):
    node = result["node"]
    assert node["loaded"]
    assert node["changes"]
    assert node["v1"]
    settings = "budget dense_blocks end_percent max_error min_tokens model preset refresh start_percent verbose"
    assert node["inputs"] == settings.split()
