"""What benchmarks share: an interrupted run goes on, files hold how they were made, tables are Markdown."""

import json

import harness
import pytest


def test_an_interrupted_run_goes_on_after_its_last_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "--repeats", "1"])
    assert harness.Run("x", tmp_path).piece("first", lambda: {"seconds": (1.0, 2.0)}) == {"seconds": [1.0, 2.0]}

    again = harness.Run("x", tmp_path)
    assert again.piece("first", pytest.fail) == {"seconds": [1.0, 2.0]}
    monkeypatch.setattr("sys.argv", ["x.py", "--repeats", "2"])
    assert harness.Run("x", tmp_path).piece("first", lambda: "other settings") == "other settings"

    again.write({"found": 1}, lambda report: f"found {report['found']}\n")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}
    report = json.loads(next(tmp_path.glob("x_*.json")).read_text())
    assert report["command"] == "python benchmarks/x.py --repeats 1"
    assert report["found"] == 1 and set(report) >= {"date", "hardware", "versions", "seconds"}


def test_a_table_is_aligned_markdown():
    assert harness.table(["part", "s"], [["dense", "1.25"]]) == [
        "| part  |    s |",
        "|:------|-----:|",
        "| dense | 1.25 |",
    ]
