"""`benchmarks/error_control.py`: every method on one short video, and a page that tells what there is."""

from __future__ import annotations

import json
from pathlib import Path

import error_control
import pytest


def test_a_bound_and_broadcast_on_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(error_control.SCHEDULES, "4 steps", (4, 1.0))
    some = ["--prompts", "1", "--seeds", "1", "--schedules", "4 steps", "--methods", "broadcast", "max_error"]
    monkeypatch.setattr("sys.argv", ["error_control.py", *some, "--output", str(tmp_path)])
    error_control.main()
    (page,), (file,) = tmp_path.glob("*.md"), tmp_path.glob("*.json")
    rows = {(row["method"], row["strength"]): row for row in json.loads(file.read_text())["rows"]}
    assert rows["broadcast", "every 2"]["cost"] == pytest.approx(0.5)
    bounds = [rows["max_error", bound] for bound in ("0.1", "0.2", "0.4")]
    assert bounds[0]["cost"] > bounds[2]["cost"] and bounds[0]["psnr"] > bounds[2]["psnr"]
    assert all(row["error"] < float(row["strength"]) for row in bounds if row["error"] is not None)
    assert "| max_error, 0.2" in page.read_text()


@pytest.mark.parametrize("steps", [4, 12, 48])
def test_every_schedule_has_its_settings(steps: int) -> None:
    found = error_control.settings(steps)
    assert {"broadcast", "missing part", "max_error", "first-block cache"} <= found.keys()
    assert all(strengths for strengths in found.values())
