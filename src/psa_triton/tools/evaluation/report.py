"""The report: one HTML file with everything in it, to be opened from disk."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from psa_triton.tools.evaluation.compare import Comparison
from psa_triton.tools.evaluation.report_data import case_view
from psa_triton.tools.evaluation.summary import summarise
from psa_triton.tools.evaluation.table import notes, sentence, table_rows
from psa_triton.tools.files import Write, write_file

_SCRIPTS: Final = ("dom", "decode", "player", "stage", "chart", "heatmap", "levels", "costs", "tables", "main")
"""Each uses what stands in those before it."""


def write_case_report(path: Path, data: Mapping[str, Any], comparison: Comparison, write: Write = write_file) -> None:
    """Write the report of one case: its videos, what was read, costs and numbers.

    Args:
        path: of the HTML file.
        data: as `case_data` makes it.
        comparison: the frames and what was recorded of them.
        write: what writes it.
    """
    write(path, _page(data["settings"]["prompt"], {**_numbers([data]), **_about(data), "case": case_view(comparison)}))


def write_run_report(
    path: Path,
    cases: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
    write: Write = write_file,
) -> None:
    """Write the report of several cases: means, and a line a case with a link to its own report.

    Args:
        path: of the HTML file, in the folder that holds those of the cases.
        cases: as `case_data` makes them.
        failed: cases that came to nothing: `name` and `error`.
        described: versions, hardware, command and date of the run.
        write: what writes it.
    """
    first = dict(cases[0]["settings"])
    for name in ("prompt", "seed"):
        del first[name]
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
    about = _about({**described, "settings": first, "missing": [m for case in cases for m in case["missing"]]})
    title = f"{len(cases)} cases"
    write(path, _page(title, {**_numbers(cases), **about, "case": None, "cases": links, "failed": list(failed)}))


def _numbers(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = summarise(cases)
    return {
        "count": len(cases),
        "table": {"header": [column.label for column in columns], "rows": table_rows(columns)},
        "notes": notes(columns),
        "sentences": [sentence(columns, column) for column in columns if column.role == "psa"],
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
        "STYLE": assets.joinpath("report.css").read_text(encoding="utf-8"),
        "SCRIPT": script,
        "DATA": block,
    }
    for name, text in parts.items():  # data last: nothing is looked for in it
        page = page.replace(f"<!--{name}-->", text, 1)
    return page.encode()
