"""A case is a prompt with a seed: its settings, its files and numbers, whether it is done; and a run of several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from psa_triton.tools.evaluation.ceiling import Ceiling
from psa_triton.tools.evaluation.compare import Candidate, Comparison, label_attentions
from psa_triton.tools.evaluation.frames import contact_sheet
from psa_triton.tools.evaluation.measures import MEASURES, PSNR_CAP
from psa_triton.tools.evaluation.report import case_report, run_report
from psa_triton.tools.evaluation.summary import markdown, summarise
from psa_triton.tools.files import json_bytes, staged
from psa_triton.tools.generation import DENSE, Attention, VideoRequest
from psa_triton.tools.generation.sidecar import differences, read_settings
from psa_triton.tools.video import Frames, encode, expected_bytes, png, side_by_side

SCHEMA_VERSION: Final = 2
"""Of `case.json` and `comparison.json`. Version 1 had PSNR and SSIM alone, and a file a prompt."""


@dataclass(frozen=True)
class Case:
    """A prompt with a seed, to be made dense and otherwise.

    Attributes:
        name: of its folder within the run's; empty where it is the only case.
        folder: where its files go.
        request: what to make.
        settings: everything that determines the result, as plain data.
    """

    name: str
    folder: Path
    request: VideoRequest
    settings: dict[str, Any]

    @property
    def file(self) -> Path:
        """Its numbers; written last, so where it is, the rest is."""
        return self.folder / "case.json"


def plan_cases(
    folder: Path,
    requests: Sequence[VideoRequest],
    seeds: Sequence[int],
    attentions: Sequence[Attention],
    *,
    ceiling: Ceiling | None,
    model: Mapping[str, Any],
) -> list[Case]:
    """A case for each prompt with each seed.

    Args:
        folder: of the run; a single case has its files there, several have a folder each in it.
        requests: one a prompt; their seeds do not count.
        seeds: of the noise.
        attentions: to compare with dense attention.
        ceiling: how dense attention is made a second time.
        model: settings of the model: weights, device, type.
    """
    ways = dict(zip(label_attentions(attentions), (attention.as_dict() for attention in attentions), strict=True))
    how = {**model, "attentions": ways, "ceiling": None if ceiling is None else ceiling.label}
    cases = []
    for index, prompt in enumerate(requests):
        for seed in seeds:
            name = "" if len(requests) * len(seeds) == 1 else f"prompt_{index:04d}_seed_{seed}"
            request = replace(prompt, seed=seed)
            cases.append(Case(name, folder / name, request, {**how, **asdict(request)}))
    return cases


def make_way(folder: Path, cases: Sequence[Case], *, overwrite: bool) -> None:
    """Where several cases go into a folder, their report takes the place of a single case's.

    Raises:
        ValueError: there is one, and it is not to be overwritten.
    """
    single = folder / "case.json"
    if len(cases) == 1 or not single.exists():
        return
    if not overwrite:
        raise ValueError(
            f"{folder} holds the comparison of a single case, whose report this one would replace; give --overwrite, "
            "or another folder"
        )
    single.unlink()


def read_finished(case: Case, *, overwrite: bool = False) -> dict[str, Any] | None:
    """The numbers of a case that is done; None where it is not, or where a part of it failed.

    Raises:
        ValueError: the folder holds a case of other settings, or something else under its name.
    """
    if overwrite or (found := read_settings(case.file)) is None:
        return None
    if changed := differences(found, case.settings):
        raise ValueError(
            f"{case.folder} was made with other settings ({changed}); give --overwrite to replace it, or another folder"
        )
    data: dict[str, Any] = json.loads(case.file.read_text(encoding="utf-8"))
    try:
        if data["missing"]:
            return None
        summarise([data])
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{case.file}: expected the numbers of a finished case, found none or others ({error}); move it away "
            "or give --overwrite"
        ) from error
    return data


def write_case(case: Case, comparison: Comparison, described: Mapping[str, Any]) -> dict[str, Any]:
    """Write a case's files, in place of those of an earlier run, and return what its `case.json` holds.

    Files: `dense.mp4`; `psa.mp4`, or one `LABEL.mp4` each if there are several attentions; `side_by_side.mp4` (of an
    image, `.png` in place of `.mp4`);
    `frames.png`; `report.html`; `case.json`, last of all.

    Args:
        case: what was asked for; its folder is made where it does not exist.
        comparison: what came out.
        described: what else `case.json` is to hold, such as versions and hardware.
    """
    fps, dense = case.request.fps, comparison.dense.frames
    suffix = "png" if fps is None else "mp4"
    frames = {candidate.label: candidate.video.frames for candidate in comparison.candidates}
    single = len(case.settings["attentions"]) == 1
    names = {label: "psa" if single else label.replace("/", "_") for label in frames}
    videos: dict[str, Frames] = {DENSE.name: dense, **{names[label]: frames[label] for label in frames}}
    videos["side_by_side"] = side_by_side({DENSE.name: dense, **frames})
    data = case_data(case, comparison, described)
    with staged() as files:
        for name, video in videos.items():
            files.write(case.folder / f"{name}.{suffix}", encode(video, fps))
        files.write(case.folder / "frames.png", png(contact_sheet(dense, frames)))
        files.write(case.folder / "report.html", case_report(data, comparison))
        files.write(case.file, json_bytes(data))
    return data


def case_data(case: Case, comparison: Comparison, described: Mapping[str, Any]) -> dict[str, Any]:
    """All settings and numbers of a case as plain data.

    Args:
        case: what was asked for.
        comparison: what came out.
        described: what else to tell of, such as versions and hardware.
    """
    ceiling = comparison.ceiling
    return {
        "schema_version": SCHEMA_VERSION,
        "name": case.name,
        "settings": case.settings,
        "psnr_cap": PSNR_CAP,
        "dense": {"cost": asdict(comparison.dense.cost)},
        "ceiling": None if ceiling is None else _made(ceiling),
        "candidates": [
            {"label": candidate.label, "attention": candidate.attention.as_dict(), **_made(candidate)}
            for candidate in comparison.candidates
        ],
        "missing": [
            {"label": label, "error": f"{type(error).__name__}: {error}"} for label, error in comparison.missing.items()
        ],
        **described,
    }


def _made(candidate: Candidate) -> dict[str, Any]:
    fidelity = {name: score.as_dict() for name, score in candidate.fidelity.items()}
    return {"label": candidate.label, "cost": asdict(candidate.video.cost), "fidelity": fidelity}


def expected_room(case: Case) -> int:
    """Bytes that the files of a case take, roughly."""
    request, videos = case.request, 2 + len(case.settings["attentions"])
    pixels = videos * 16 * expected_bytes(request.width, request.height, request.num_frames)
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
        "summary": [asdict(column) for column in columns],
        "cases": list(cases),
        "failed": list(failed),
        **described,
    }
    with staged() as files:
        files.write(folder / "comparison.md", markdown(columns, cases=len(cases)).encode())
        if not (len(cases) == 1 and cases[0]["name"] == ""):
            files.write(folder / "report.html", run_report(cases, failed, described))
        files.write(folder / "comparison.json", json_bytes(data))
