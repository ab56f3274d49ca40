"""The files of a comparison: of a case its videos, sheet of frames, report and numbers; of a run the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from psa_triton.evaluation.case import SCHEMA_VERSION, Case, case_data
from psa_triton.evaluation.compare import Comparison
from psa_triton.evaluation.contact_sheet import contact_sheet
from psa_triton.evaluation.measures import MEASURES
from psa_triton.evaluation.report import write_case_report, write_run_report
from psa_triton.evaluation.summary import summarise
from psa_triton.evaluation.table import markdown
from psa_triton.generation import DENSE, write_json
from psa_triton.video import side_by_side, write_video


def write_case(case: Case, comparison: Comparison, described: Mapping[str, Any]) -> dict[str, Any]:
    """Write a case's files, in place of those of an earlier run, and return what its `case.json` holds.

    Files: `dense.mp4`; `psa.mp4`, or one `LABEL.mp4` each if there are several attentions; `side_by_side.mp4`;
    `frames.png`; `report.html`; `case.json`, last of all.

    Args:
        case: what was asked for; its folder is made where it does not exist.
        comparison: what came out.
        described: what else `case.json` is to hold, such as versions and hardware.
    """
    case.folder.mkdir(parents=True, exist_ok=True)
    case.file.unlink(missing_ok=True)  # as long as files are of two runs, the case is not done
    fps, dense = case.request.fps, comparison.dense.frames
    frames = {candidate.label: candidate.video.frames for candidate in comparison.candidates}
    write_video(case.folder / "dense.mp4", dense, fps=fps)
    single = len(case.settings["attentions"]) == 1
    for label in frames:
        name = "psa" if single else label.replace("/", "_")
        write_video(case.folder / f"{name}.mp4", frames[label], fps=fps)
    write_video(case.folder / "side_by_side.mp4", side_by_side({DENSE.name: dense, **frames}), fps=fps)
    part = case.folder / "frames.part.png"
    Image.fromarray(contact_sheet(dense, frames)).save(part)
    part.replace(case.folder / "frames.png")
    data = case_data(case, comparison, described)
    write_case_report(case.folder / "report.html", data, comparison)
    write_json(case.file, data)
    return data


def write_summary(
    folder: Path,
    cases: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
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
    write_json(folder / "comparison.json", data)
    part = folder / "comparison.md.part"
    part.write_text(markdown(columns, cases=len(cases)), encoding="utf-8")
    part.replace(folder / "comparison.md")
    if not (len(cases) == 1 and cases[0]["name"] == ""):
        write_run_report(folder / "report.html", cases, failed, described)
