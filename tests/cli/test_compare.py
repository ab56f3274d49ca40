from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from psa_triton.cli.app import app
from psa_triton.video import read_video

PRESET = "CogVideo_5b/psa_4steps"  # no warm-up
OTHER = "tiny-wan/psa_balanced"


@pytest.fixture
def compare(pipeline_folder: Path, tmp_path: Path):
    """Runs `psa compare` on the small pipeline, into `tmp_path / "out"`."""

    def run(*options: str) -> Result:
        small = ["--width", "64", "--height", "64", "--num_frames", "17", "--steps", "6", "--guidance-scale", "1"]
        model = ["--model", str(pipeline_folder), "--output_dir", str(tmp_path / "out")]
        return CliRunner().invoke(app, ["compare", *model, *small, *options])

    return run


def test_dense_and_sparse_are_made_from_one_noise_and_reported(compare, tmp_path: Path) -> None:
    result = compare("--prompt", "a red square moving left", "--attention_preset", OTHER)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        *("comparison.json", "dense.mp4", "frames.png", "psa.mp4", "side_by_side.mp4")
    ]
    dense, sparse = (read_video(out / name).frames for name in ("dense.mp4", "psa.mp4"))
    assert dense.shape == sparse.shape == (17, 64, 64, 3)
    saved = json.loads((out / "comparison.json").read_text())
    (candidate,) = saved["candidates"]
    assert candidate["attention"]["preset"] == OTHER
    assert saved["dense"]["cost"]["run_density"] == 1
    assert 0 < candidate["cost"]["attention_density"] < candidate["cost"]["run_density"] < 1
    assert 10 < candidate["psnr"] < saved["psnr_cap"]
    assert saved["versions"]["diffusers"]
    for words in ("self-attention, s", "PSNR to dense, dB", "psa_balanced did", "over the whole run"):
        assert words in result.output


def test_several_presets_and_prompts_have_files_of_their_own(compare, tmp_path: Path) -> None:
    prompts = ("--prompt", "a red square", "--prompt", "a blue ring")
    result = compare(*prompts, "--attention_preset", PRESET, "--attention_preset", OTHER, "--no-warm-up")
    assert result.exit_code == 0, result.output
    for index in (0, 1):
        folder = tmp_path / "out" / f"prompt_000{index}"
        assert (folder / "psa_4steps.mp4").is_file()
        assert (folder / "psa_balanced.mp4").is_file()
        assert json.loads((folder / "comparison.json").read_text())["request"]["seed"] == 42 + index


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param([], "expected a prompt", id="no-prompt"),
        pytest.param(["--prompt", "x"], "give SECTION/PRESET", id="no-preset"),
        pytest.param(["--prompt", "x", "--attention-preset", "tiny-wan/baseline"], "which is dense", id="dense"),
        pytest.param(["--prompt", "x", *["--attention-preset", PRESET] * 2], "twice", id="twice"),
    ],
)
def test_bad_options_are_one_line_and_make_nothing(compare, options: list[str], message: str, tmp_path: Path) -> None:
    result = compare(*options)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert message in result.output
    assert not (tmp_path / "out").exists()
