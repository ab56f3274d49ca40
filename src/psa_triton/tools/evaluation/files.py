"""The files of a comparison: of a case its videos, sheet of frames, report and numbers; of a run the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psa_triton.tools.evaluation.case import SCHEMA_VERSION, Case, case_data
from psa_triton.tools.evaluation.compare import Comparison
from psa_triton.tools.evaluation.contact_sheet import contact_sheet
from psa_triton.tools.evaluation.measures import MEASURES
from psa_triton.tools.evaluation.report import write_case_report, write_run_report
from psa_triton.tools.evaluation.summary import summarise
from psa_triton.tools.evaluation.table import markdown
from psa_triton.tools.files import json_bytes, staged
from psa_triton.tools.generation import DENSE
from psa_triton.tools.video import Frames, encode_video, png, side_by_side


def write_case(case: Case, comparison: Comparison, described: Mapping[str, Any]) -> dict[str, Any]:
    """Write a case's files, in place of those of an earlier run, and return what its `case.json` holds.

    Files: `dense.mp4`; `psa.mp4`, or one `LABEL.mp4` each if there are several attentions; `side_by_side.mp4`;
    `frames.png`; `report.html`; `case.json`, last of all.

    Args:
        case: what was asked for; its folder is made where it does not exist.
        comparison: what came out.
        described: what else `case.json` is to hold, such as versions and hardware.
    """
    fps, dense = case.request.fps, comparison.dense.frames
    frames = {candidate.label: candidate.video.frames for candidate in comparison.candidates}
    single = len(case.settings["attentions"]) == 1
    names = {label: "psa" if single else label.replace("/", "_") for label in frames}
    videos: dict[str, Frames] = {DENSE.name: dense, **{names[label]: frames[label] for label in frames}}
    videos["side_by_side"] = side_by_side({DENSE.name: dense, **frames})
    data = case_data(case, comparison, described)
    with staged() as files:
        for name, video in videos.items():
            files.write(case.folder / f"{name}.mp4", encode_video(video, fps=fps))
        files.write(case.folder / "frames.png", png(contact_sheet(dense, frames)))
        write_case_report(case.folder / "report.html", data, comparison, files.write)
        files.write(case.file, json_bytes(data))
    return data


def expected_room(case: Case) -> int:
    """Bytes that the files of a case take, roughly."""
    request, videos = case.request, 2 + len(case.settings["attentions"])
    pixels = videos * request.width * request.height * request.num_frames
    # The frames in the report, kept exactly where they are few, are most of it; then the videos beside each other.
    return (1 << 19) + min(pixels, 24 << 20) + pixels // 8


def write_summary(
    folder: Path, cases: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]], described: Mapping[str, Any]
) -> None:
    """Write `comparison.json` and `comparison.md`: means and standard errors over cases, and all cases.

    Several cases get a `report.html` of their own too; that of a single case stands there already.

    Args:
        folder: of the run.
        cases: as `write_case` returned them, or as they were read.
        failed: cases that came to nothing: `name` and `error`.
        described: what else `comparison.json` is to hold, such as versions and hardware.
    """
    columns = summarise(cases)
    data = {
        "schema_version": SCHEMA_VERSION,
        "measures": {name: {"label": measure.label, "closer": measure.closer} for name, measure in MEASURES.items()},
        "summary": [column.as_dict() for column in columns],
        "cases": list(cases),
        "failed": list(failed),
        **described,
    }
    with staged() as files:
        files.write(folder / "comparison.md", markdown(columns, cases=len(cases)).encode())
        if not (len(cases) == 1 and cases[0]["name"] == ""):
            write_run_report(folder / "report.html", cases, failed, described, files.write)
        files.write(folder / "comparison.json", json_bytes(data))
