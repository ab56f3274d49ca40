"""The GPU benchmark's script, on small shapes in the interpreter: everything it compares is right; nothing is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_attention.py"
WITHOUT_OTHER_PACKAGES = """
import runpy, sys
script, *missing = sys.argv[1].split(",")
sys.modules.update(dict.fromkeys(missing))
sys.argv[:] = [script, "--check", "--output", sys.argv[2]]
sys.path.insert(0, script.rpartition("/")[0])
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU times what it runs")
def test_small_shapes_are_right_without_other_packages(tmp_path: Path) -> None:
    arguments = [",".join([str(SCRIPT), "rich", "yaml", "diffusers", "transformers"]), str(tmp_path)]
    command = [sys.executable, "-c", WITHOUT_OTHER_PACKAGES, *arguments]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (page,), (file,) = tmp_path.glob("*.md"), tmp_path.glob("*.json")
    report = json.loads(file.read_text())
    assert len(report["errors_over_eager"]) == 2
    assert all(error <= 2 for errors in report["errors_over_eager"].values() for error in errors.values())
    assert all(shape["flex"]["difference"] < 0.02 for shape in report["shapes"])
    assert "not measured" in page.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_what_runs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--output", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no GPU found; without one, only TRITON_INTERPRET=1 with --check runs" in done.stderr
