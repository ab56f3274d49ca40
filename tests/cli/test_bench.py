from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from psa_triton.cli.app import app


def psa(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250", "NO_COLOR": "1"}, prog_name="psa")


def test_times_a_shape_and_gives_a_verdict(tmp_path: Path) -> None:
    result = psa("bench", "--shape", "tiny-wan", "--no-flex", "--repeats", "1", "--output_dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "1,152" in result.stdout
    assert "tokens it is" in result.stdout
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [case["tokens"] for case in found["cases"]][-1] == 1152
    for case in found["cases"]:
        assert 0 < case["density"] <= 1
        assert case["speedup"] == case["seconds"]["sdpa"] / case["seconds"]["psa"]
        assert case["seconds"]["psa kernel"] > 0 and case["seconds"]["psa choice of levels"] > 0
        assert case["scratch"].keys() == {"sdpa", "psa"}
    assert found["verdict"]["measured"]
    assert found["shape"]["heads"] == 1
    assert {"versions", "hardware", "command", "date"} <= found.keys()
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench.json", "bench.png"]


def test_a_budget_is_kept(tmp_path: Path) -> None:
    arguments = ("--shape", "tiny-wan", "--attention-preset", "psa_budget", "--no-flex", "--repeats", "1")
    result = psa("bench", *arguments, "--seconds", "1", "--output-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    case = json.loads((tmp_path / "bench.json").read_text())["cases"][-1]
    assert case["density"] + case["estimation_share"] <= 0.151


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(("--shape", "wan21-72p"), "wan21-720p", id="unknown shape"),
        pytest.param(("--shape", "tiny-wan", "--heads", "9"), "expected 1 to 3", id="too many heads"),
        pytest.param(("--attention-preset", "baseline"), "expected a sparse one", id="dense preset"),
        pytest.param(("--attention-preset", "psa_balance"), "psa_balanced", id="unknown preset"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    result = psa("bench", *arguments, "--output-dir", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert told in result.stderr
    assert not (tmp_path / "out").exists()
