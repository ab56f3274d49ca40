"""The report: one HTML page with everything in it, to be opened from disk."""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any, Final

import numpy as np
import torch

from psa_triton.integrations.diffusers import PSAStats
from psa_triton.tools.evaluation.compare import Candidate, Comparison
from psa_triton.tools.evaluation.frames import web_frames
from psa_triton.tools.evaluation.levels_record import CallSite, LevelMap
from psa_triton.tools.evaluation.measures import MEASURES, Fidelity
from psa_triton.tools.evaluation.summary import notes, summarise, table_rows
from psa_triton.tools.evaluation.verdict import judge
from psa_triton.tools.generation import DENSE, Cost

_SCRIPTS: Final = ("dom", "decode", "player", "stage", "chart", "heatmap", "levels", "costs", "tables", "main")
"""Each uses what stands in those before it."""


def case_report(data: Mapping[str, Any], comparison: Comparison) -> bytes:
    """The report of one case: its videos, what was read, costs and numbers.

    Args:
        data: as `case_data` makes it.
        comparison: the frames and what was recorded of them.
    """
    return _page(data["settings"]["prompt"], {**_numbers([data]), **_about(data), "case": case_view(comparison)})


def run_report(
    cases: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]], described: Mapping[str, Any]
) -> bytes:
    """The report of several cases: means, and a line a case with a link to its own report, in a folder beside it.

    Args:
        cases: as `case_data` makes them.
        failed: cases that came to nothing: `name` and `error`.
        described: versions, hardware, command and date of the run.
    """
    common = {name: value for name, value in cases[0]["settings"].items() if name not in ("prompt", "seed")}
    links = [
        {
            "name": case["name"],
            "prompt": case["settings"]["prompt"],
            "seed": case["settings"]["seed"],
            "href": f"{case['name']}/report.html",
            "means": [
                {"label": column.label, "psnr": column.mean("psnr"), "ssim": column.mean("ssim")}
                for column in summarise([case])
                if column.role != "dense"
            ],
        }
        for case in cases
    ]
    about = _about({**described, "settings": common, "missing": [m for case in cases for m in case["missing"]]})
    title = f"{len(cases)} cases"
    return _page(title, {**_numbers(cases), **about, "case": None, "cases": links, "failed": list(failed)})


def _numbers(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = summarise(cases)
    judged = judge(columns)
    # What came out stands first, the best before others: a phone shows no more.
    columns = [*(column for column, _ in judged), *(column for column in columns if column.role != "psa")]
    return {
        "count": len(cases),
        "table": {"header": [column.heading for column in columns], "rows": table_rows(columns)},
        "verdicts": [{"label": column.label, **asdict(verdict)} for column, verdict in judged],
        "notes": notes(columns),
    }


def _about(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ("settings", "missing", "versions", "hardware", "command", "date")}


def _page(title: str, data: Mapping[str, Any]) -> bytes:
    assets = files("psa_triton.tools.evaluation").joinpath("report_assets")
    page = assets.joinpath("report.html").read_text(encoding="utf-8")
    script = "\n".join(assets.joinpath(f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    # `<` in data could end the script element that holds it; in JSON it may be written otherwise.
    block = json.dumps({"title": title, **data}, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "TITLE": html.escape(title),
        "VERDICT": _verdict_html(data["verdicts"]),
        "STYLE": assets.joinpath("report.css").read_text(encoding="utf-8"),
        "SCRIPT": script,
        "DATA": block,
    }
    for name, text in parts.items():  # data last: nothing is looked for in it
        page = page.replace(f"<!--{name}-->", text)
    return page.encode()


def _verdict_html(verdicts: Sequence[Mapping[str, str]]) -> str:
    """The best candidate's, in full; of others what they came to. Without scripts too."""
    if not verdicts:
        return "<h1>Nothing was compared</h1>"
    first, *others = ({name: html.escape(text) for name, text in verdict.items()} for verdict in verdicts)
    lines = [
        f"<h1>{first['answer']}</h1>",
        f'<p class="why"><b>Why</b> {first["cause"]}.</p><p class="why"><b>Try</b> {first["advice"]}.</p>',
        *(f'<p class="why">{other["answer"]} <b>Why</b> {other["cause"]}.</p>' for other in others),
    ]
    return "\n".join(lines)


def case_view(comparison: Comparison) -> dict[str, Any]:
    """All that is drawn of one case."""
    others = {candidate.label: candidate for candidate in comparison.candidates}
    if comparison.ceiling is not None:
        others[f"ceiling ({comparison.ceiling.label})"] = comparison.ceiling
    videos = {DENSE.name: comparison.dense, **{label: other.video for label, other in others.items()}}
    frames, exact = web_frames({label: video.frames for label, video in videos.items()})
    count, height, width, _ = comparison.dense.frames.shape
    size = {"width": width, "height": height, "count": count, "fps": comparison.request.fps or 1}
    bars = {DENSE.name: comparison.dense, **{other.label: other.video for other in comparison.candidates}}
    return {
        "video": {**size, "exact": exact, "frames": frames},
        "scores": {label: _scores(other.fidelity) for label, other in others.items()},
        "measures": {
            name: {"label": measure.label, "digits": measure.digits, "closer": measure.closer}
            for name, measure in MEASURES.items()
        },
        "costs": [{"label": name, "seconds": _seconds(x.cost), "work": _work(x.stats)} for name, x in bars.items()],
        "reads": {candidate.label: _reads(candidate) for candidate in comparison.candidates},
    }


def _scores(fidelity: Fidelity) -> dict[str, list[float]]:
    """Per measure that could be taken, a number a frame."""
    return {name: [round(value, 4) for value in score.frames] for name, score in fidelity.items() if score.frames}


def _seconds(cost: Cost) -> dict[str, float]:
    """Where time went."""
    parts = {
        "sparse attention": cost.sparse_attention_seconds,
        "dense attention": cost.dense_attention_seconds,
        "rest of the transformer": cost.transformer_seconds - cost.attention_seconds,
        "outside the transformer": cost.total_seconds - cost.transformer_seconds,
    }
    return {name: round(max(0.0, value), 4) for name, value in parts.items()}


def _work(stats: PSAStats) -> dict[str, float]:
    """Multiply-adds of self-attention as shares of what they are if all of it is dense."""
    work = {"choosing levels": 0.0, "sparse attention": 0.0, "dense attention": 0.0}
    total = sum(record.calls * record.tokens**2 for record in stats.records)
    for record in stats.records:
        share = record.calls * record.tokens**2 / total
        work["sparse attention" if record.sparse else "dense attention"] += share * record.density
        work["choosing levels"] += share * (record.density_with_estimation - record.density)
    return {name: round(value, 6) for name, value in work.items()}


def _reads(candidate: Candidate) -> dict[str, Any]:
    """Densities of every layer, head and step, and the level maps that were kept."""
    recording, records = candidate.recording, candidate.video.stats.records
    layers = sorted({(record.transformer, record.layer) for record in records})
    steps = 1 + max((record.step or 0 for record in records), default=0)
    reasons = {(r.transformer, r.layer, r.step or 0): r.reason for r in records if not r.sparse}
    densities = recording.densities

    def cell(site: CallSite) -> list[float] | str | None:
        """Density of each head; why the call was dense; None where there was no call."""
        return [round(value, 4) for value in densities[site]] if site in densities else reasons.get(site)

    return {
        "steps": steps,
        "layers": [{"transformer": transformer, "layer": layer} for transformer, layer in layers],
        "density": [[cell(CallSite(*layer, step)) for step in range(steps)] for layer in layers],
        "layout": None if recording.layout is None else _layout(recording.layout),
        "maps": _maps(recording.maps, layers),
    }


def _layout(layout: Mapping[str, Any]) -> dict[str, Any]:
    order = layout["order"]
    return {**layout, "order": None if order is None else _compressed([order.permutation.to(torch.int32).numpy()])}


def _maps(maps: Mapping[CallSite, LevelMap], layers: list[tuple[str, int]]) -> dict[str, Any]:
    """Where each map stands in the one block of bytes that holds all of them, two codes a byte."""
    index, offset = [], 0
    for site, entry in sorted(maps.items()):
        layer = layers.index((site.transformer, site.layer))
        index.append({"layer": layer, "step": site.step, "heads": list(entry.heads), "offset": offset})
        offset += entry.packed.numel()
    return {"index": index, "codes": _compressed(entry.packed.numpy() for _, entry in sorted(maps.items()))}


def _compressed(arrays: Iterable[np.ndarray]) -> str:
    """Little-endian bytes of the arrays, one after another, by zlib and base64."""
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")
