"""`benchmarks/prefill_speed.py` on a short prompt: it measures both parts; how fast they are is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prefill_speed.py"


def test_both_parts_of_a_short_prefill(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tokens", "1024", "--rounds", "2", "--models", "smollm2"]
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,), (page,) = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    report = json.loads(file.read_text())
    attention, prefill = report["cases"]
    assert (attention["part"], prefill["part"]) == ("attention", "prefill")
    for case in report["cases"]:
        assert case["density"] == pytest.approx(0.6, abs=0.1), "of eight key blocks, two are read in full in any case"
        assert case["speedup"]["least"] <= case["speedup"]["median"] <= case["speedup"]["most"]
        assert all(len(seconds) == 2 for seconds in case["seconds"].values())
    assert 0 < attention["estimation_share"]["median"] < 1
    assert "2 layers, random weights |   1024 |" in page.read_text()
