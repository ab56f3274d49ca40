"""`benchmarks/choice_cost.py` on short sequences: every part is there, and the page tells its share."""

from __future__ import annotations

from pathlib import Path

import choice_cost
import pytest
import torch


def test_every_part_has_a_time_and_its_share_of_dense() -> None:
    rows = choice_cost.measure("float32", 512, 1, torch.device("cpu"))
    dense = {row["part"]: row["seconds"] for row in rows}["dense"]
    assert len(rows) == 10
    for row in rows:
        assert row["seconds"] > 0
        assert row["share"] == pytest.approx(row["seconds"] / dense)


def test_the_whole_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--tokens", "256", "--dtypes", "float32", "--repeats", "1", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["choice_cost.py", *arguments])
    choice_cost.main()
    (page,) = tmp_path.glob("*.md")
    assert "| budget: estimate |" in page.read_text()
    assert "float32, 256 tokens" in page.read_text()
