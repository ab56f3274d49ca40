"""`benchmarks/error_control.py`: methods on one short video, and a page that tells what there is."""

import json

import error_control
import pytest


def test_ways_and_caches_on_one_video(tmp_path, monkeypatch):
    monkeypatch.setitem(error_control.SCHEDULES, "4 steps", ("tiny-wan-1k", 4, 1.0))
    caches = ["first-block cache", "TaylorSeer", "MagCache", "Pyramid Attention Broadcast"]
    methods = ["broadcast", "max_error", *caches]
    some = ["--prompts", "1", "--seeds", "1", "--schedule", "4 steps", "--methods", *methods]
    monkeypatch.setattr("sys.argv", ["error_control.py", *some, "--output", str(tmp_path)])
    error_control.main()
    (page,), (file,) = tmp_path.glob("*.md"), tmp_path.glob("*.json")
    rows = {(row["method"], row["strength"]): row for row in json.loads(file.read_text())["rows"]}
    broadcast = rows["broadcast", "every 2"]
    assert broadcast["cost"] == pytest.approx(0.5) and 0.5 < broadcast["whole"] < 1
    tight, loose = (rows["max_error", bound] for bound in ("0.1", "0.2"))
    assert tight["cost"] > loose["cost"] and tight["psnr"] > loose["psnr"] and tight["st_lpips"] < loose["st_lpips"]
    assert loose["error"] < 0.2
    cached = rows["TaylorSeer", "every 2"]
    assert cached["cost"] < 1 and cached["whole"] < 1 and cached["psnr"] > 10
    assert {method for method, _ in rows} == set(methods)
    assert "| max_error, 0.2" in page.read_text()


@pytest.mark.parametrize("schedule", error_control.SCHEDULES)
def test_every_schedule_has_its_settings(schedule):
    model, steps, guidance = error_control.SCHEDULES[schedule]
    found = error_control.settings(model, steps, guided=guidance is None)
    assert ("Pyramid Attention Broadcast" in found) is (guidance is not None)
    assert {"warm-up", "broadcast", "difference", "max_error"} <= found.keys() and all(found.values())
