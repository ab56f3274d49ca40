"""`benchmarks/choice_cost.py` on short sequences: every part is there, and the page tells its share."""

from __future__ import annotations

import json
from pathlib import Path

import choice_cost
import pytest


def test_every_part_has_a_time_and_its_share_of_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--tokens", "256", "--dtypes", "float32", "--repeats", "1", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["choice_cost.py", *arguments])
    choice_cost.main()
    (page,), (file,) = tmp_path.glob("*.md"), tmp_path.glob("*.json")
    (seconds,) = json.loads(file.read_text())["seconds_of_parts"].values()
    assert len(seconds) == 10 and min(seconds.values()) > 0
    estimate = next(line for line in page.read_text().splitlines() if "budget: estimate" in line)
    assert estimate.split("|")[2].strip() == f"{seconds['budget: estimate'] / seconds['dense']:.2%}"
    assert "float32, 256 tokens" in page.read_text()
