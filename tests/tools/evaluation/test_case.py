"""Cases as folders: what is written, and what a run that is started again keeps."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from psa_triton.tools.evaluation.case import read_finished, write_case
from psa_triton.tools.understanding import read_media


def test_a_case_has_videos_a_sheet_a_report_and_all_numbers(case, comparison, described):
    data = write_case(case, comparison, described)
    assert sorted(file.name for file in case.folder.iterdir()) == [
        *("case.json", "dense.mp4", "frames.png", "full.mp4", "half.mp4", "report.html", "side_by_side.mp4")
    ]
    assert read_media(case.folder / "half.mp4", "video", num_frames=99).frames.shape == (17, 64, 64, 3)
    joined = read_media(case.folder / "side_by_side.mp4", "video", num_frames=99).frames
    assert len(joined) == 17
    assert joined.shape[2] > 3 * 256, "three videos of 64 pixels, magnified"
    with Image.open(case.folder / "frames.png") as sheet:
        assert sheet.height > 5 * 160, "five rows"
    assert json.loads(case.file.read_text()) == json.loads(json.dumps(data))
    assert data["settings"]["seed"] == 42
    assert data["date"] == "today"
    assert [entry["label"] for entry in data["candidates"]] == ["half", "full"]
    assert data["candidates"][0]["cost"]["attention_density"] == pytest.approx(0.35)
    assert len(data["candidates"][0]["fidelity"]["psnr"]["frames"]) == 17
    assert data["ceiling"]["label"] == "dense in bfloat16"


def test_a_case_that_lacks_a_video_is_done_again(case, comparison, described):
    missing = {"full": RuntimeError("out of memory")}
    partly = replace(comparison, candidates=comparison.candidates[:1], missing=missing)
    data = write_case(case, partly, described)
    assert data["missing"] == [{"label": "full", "error": "RuntimeError: out of memory"}]
    assert (case.folder / "half.mp4").is_file(), "named as if the other were there"
    assert read_finished(case) is None


def test_a_case_cut_short_changes_nothing(tmp_path, case, comparison, described, monkeypatch):
    write_case(case, comparison, described)
    before = read_finished(case)
    assert before is not None

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("psa_triton.tools.evaluation.case.case_report", stop)
    with pytest.raises(KeyboardInterrupt):
        write_case(case, comparison, described)
    assert read_finished(case) == before
    assert not list(tmp_path.rglob("*.part"))


def test_the_summary_of_a_run(run_folder):
    saved = json.loads((run_folder / "comparison.json").read_text())
    assert saved["schema_version"] == 2
    assert [failed["name"] for failed in saved["failed"]] == ["prompt_0001_seed_1"]
    assert [column["label"] for column in saved["summary"]] == ["dense", "dense in bfloat16", "half", "full"]
    half = saved["summary"][2]["averages"]["psnr"]
    assert (half["count"], half["standard_error"]) == (2, 0)
    assert saved["measures"]["st_lpips"]["closer"] == "lower"
    assert "| PSNR to dense, dB |" in (run_folder / "comparison.md").read_text()
    page = (run_folder / "report.html").read_text()
    assert "prompt_0000_seed_1/report.html" in page
    assert not list(run_folder.rglob("*.part"))
