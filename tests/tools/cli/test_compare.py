import json
import os

import pytest
from command_line import psa

from psa_triton.tools.understanding import read_media

PRESET = "tiny-wan/psa_timing"  # no warm-up
OTHER = "tiny-wan/psa_balanced"
FAST = ("--no-warm-up", "--ceiling", "none", "--steps", "6")


@pytest.fixture
def compare(pipeline_folder, tmp_path):
    """Runs `psa compare` on the small pipeline, into `tmp_path / "out"`."""

    def run(*options):
        small = ["--width", "64", "--height", "64", "--num_frames", "5", "--guidance-scale", "1"]
        return psa("compare", "--model", pipeline_folder, "--output_dir", tmp_path / "out", *small, *options)

    return run


def summary_of(folder):
    return json.loads((folder / "comparison.json").read_text())


def test_dense_and_sparse_are_made_from_one_noise_and_reported(compare, tmp_path):
    result = compare("--prompt", "a red square moving left", "--attention_preset", OTHER, "--steps", "6")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        *("case.json", "comparison.json", "comparison.md", "dense.mp4", "frames.png"),
        *("psa.mp4", "report.html", "side_by_side.mp4"),
    ]
    dense, sparse = (read_media(out / name, "video", num_frames=99).frames for name in ("dense.mp4", "psa.mp4"))
    assert dense.shape == sparse.shape == (5, 64, 64, 3)
    saved = summary_of(out)
    assert saved["versions"]["diffusers"]
    (case,) = saved["cases"]
    (candidate,) = case["candidates"]
    assert candidate["attention"]["preset"] == OTHER
    assert case["dense"]["cost"]["run_density"] == 1
    assert 0 < candidate["cost"]["attention_density"] < candidate["cost"]["run_density"] < 1
    assert 10 < candidate["fidelity"]["psnr"]["mean"] < 100
    assert 10 < case["ceiling"]["fidelity"]["psnr"]["mean"] < 100
    for words in ("self-attention, s", "PSNR to dense, dB", "psa_balanced was", "bfloat16", "Why: ", "Try: "):
        assert words in result.output


def test_prompts_times_seeds_have_folders_of_their_own_and_a_mean(compare, tmp_path):
    prompts = ("--prompt", "a red square", "--prompt", "a blue ring", "--seed", "7", "--num-seeds", "2")
    bound = ("--max-error", "0.4")
    result = compare(*prompts, "--attention_preset", PRESET, "--attention_preset", OTHER, *bound, *FAST)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    saved = summary_of(out)
    assert [(case["settings"]["prompt"], case["settings"]["seed"]) for case in saved["cases"]] == [
        *(("a red square", 7), ("a red square", 8), ("a blue ring", 7), ("a blue ring", 8))
    ]
    assert (out / "prompt_0001_seed_8" / "psa_timing.mp4").is_file()
    assert (out / "prompt_0000_seed_7" / "report.html").is_file()
    dense, timing, balanced = saved["summary"]
    assert [dense["label"], timing["label"], balanced["label"]] == ["dense", "psa_timing", "psa_balanced"]
    assert timing["averages"]["psnr"]["count"] == 4
    assert timing["averages"]["psnr"]["standard_error"] > 0
    assert 0 < balanced["averages"]["measured_error"]["mean"] <= 0.4
    assert "means over 4 cases" in result.output
    assert "measured error of attention" in result.output
    assert " ± " in (out / "comparison.md").read_text()


def test_started_again_it_keeps_what_is_done(compare, tmp_path):
    options = ("--prompt", "a red square", "--attention_preset", OTHER, *FAST)
    assert compare(*options).exit_code == 0
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.mp4")}
    again = compare(*options)
    assert again.exit_code == 0
    assert "finished before, kept" in again.output
    assert "psa_balanced was" in again.output
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.mp4")} == made
    other = compare(*options, "--fps", "9")
    assert other.exit_code == 1
    assert "made with other settings (fps" in other.output
    assert compare(*options, "--fps", "9", "--overwrite").exit_code == 0


def test_one_prompt_that_fails_costs_no_other(compare, tmp_path, failing_prompt):
    prompts = ("--prompt", failing_prompt, "--prompt", "a blue ring")
    result = compare(*prompts, "--attention_preset", PRESET, *FAST)
    assert result.exit_code == 1
    assert "1 failed:" in result.output
    assert f"({failing_prompt}): IndexError" in result.output
    saved = summary_of(tmp_path / "out")
    assert [case["name"] for case in saved["cases"]] == ["prompt_0001_seed_42"]
    assert [entry["name"] for entry in saved["failed"]] == ["prompt_0000_seed_42"]


def test_where_all_failed_no_files_are_named(compare, tmp_path, failing_prompt):
    result = compare("--prompt", failing_prompt, "--attention_preset", PRESET, *FAST)
    assert result.exit_code == 1 and "1 failed:" in result.output
    assert "Files:" not in result.output and not (tmp_path / "out").exists()


def test_several_cases_do_not_take_the_place_of_the_report_of_one(compare, tmp_path):
    options, report = ("--attention_preset", PRESET, *FAST, "--steps", "1"), tmp_path / "out" / "report.html"
    assert compare("--prompt", "a red square", *options).exit_code == 0
    single = report.read_bytes()
    both = ("--prompt", "a red square", "--prompt", "a blue ring", *options)
    result = compare(*both)
    assert result.exit_code == 1 and "holds the comparison of a single case" in result.stderr
    assert report.read_bytes() == single
    assert compare(*both, "--overwrite").exit_code == 0
    assert "2 cases" in report.read_text() and not (tmp_path / "out" / "case.json").exists()


@pytest.mark.parametrize(("wanted", "is_told"), [(1.0, False), (1.5, True)])
def test_a_busy_machine_is_told_of(wanted, is_told, compare, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (wanted * os.cpu_count(), 0.0, 0.0))
    result = compare("--prompt", "a red square", "--attention_preset", PRESET, *FAST, "--steps", "1")
    assert ("OMP_WAIT_POLICY=passive helps" in result.output) == is_told
