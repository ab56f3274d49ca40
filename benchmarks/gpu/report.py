"""Measured times as tables: milliseconds beside what they would ideally be, and the targets."""

from __future__ import annotations

from typing import Any

from gpu.cases import ESTIMATORS
from gpu.measure import Times

TARGETS = {"kernel": 0.8, "whole": 0.7, "overheads": 0.03, "scratch": 1.2, "dense": 1.25}
"""At density .15; the last at density 1."""


def markdown(report: Times) -> str:
    """The whole report as a page."""
    hardware, versions = report["hardware"], report["versions"]
    machine = f"{hardware['gpu'] or hardware['cpu']}, driver {hardware['driver']}, CUDA {versions['cuda']}"
    libraries = f"torch {versions['torch']}, triton {versions['triton']}, cuDNN {versions['cudnn']}"
    lines = [
        "# PSA on a GPU against dense attention",
        "",
        f"{report['date']}, {machine}, {libraries}; `{report['command']}`",
        "",
        "Milliseconds, bfloat16, batch 1. *of ideal*: best dense time x density / time. *whole*: importance,",
        "selection, pyramid, schedule and kernel. *scratch*: memory beside inputs and output, over that of K and V.",
        "",
    ]
    for title, rows in (
        (f"Targets, set for an H200; {report['shapes'][0]['name']}", target_rows(report["shapes"][0])),
        ("Dense attention, and FlexAttention over the pyramid of density .15", dense_rows(report["shapes"])),
        ("Sparse attention", sparse_rows(report["shapes"])),
        ("Steps of the pyramid of density .15", step_rows(report["shapes"])),
    ):
        lines += [f"## {title}", "", *_table(rows), ""]
    return "\n".join(lines)


def target_rows(shape: Times) -> list[dict[str, str]]:
    """Bound, measured value and verdict of each target."""
    dense = best(shape, "forward_ms")
    mask = find_mask(shape, "pyramid", 0.15)
    full = find_mask(shape, "levels 1/0", 1.0)
    rows = [
        _target("kernel, of ideal", ">=", TARGETS["kernel"], of_ideal(dense, mask, mask["steps_ms"]["kernel"])),
        _target("density 1, of dense time", "<=", TARGETS["dense"], _ratio(full["steps_ms"]["kernel"], dense)),
    ]
    for method in ESTIMATORS:
        ideal = of_ideal(dense, mask, mask["whole_ms"][method])
        rows += [
            _target(f"everything with {method}, of ideal", ">=", TARGETS["whole"], ideal),
            _target(
                f"overheads with {method}, of dense time", "<=", TARGETS["overheads"], _overheads(mask, method, dense)
            ),
            _target(f"scratch with {method}, of K and V", "<=", TARGETS["scratch"], mask["scratch_over_kv"][method]),
        ]
    return rows


def dense_rows(shapes: list[Times]) -> list[dict[str, str]]:
    rows = []
    for shape in shapes:
        for name, times in {**shape["dense"], "flex over the pyramid": shape["flex"]}.items():
            rows.append(
                {
                    "shape": shape["name"],
                    "attention": name,
                    "forward": _number(times.get("forward_ms")),
                    "backward": _number(times.get("backward_ms")),
                    "did not run": times.get("refused", ""),
                }
            )
    return rows


def sparse_rows(shapes: list[Times]) -> list[dict[str, str]]:
    rows = []
    for shape in shapes:
        forward, backward = best(shape, "forward_ms"), best(shape, "backward_ms")
        for mask in shape["masks"]:
            kernel = mask["steps_ms"]["kernel"]
            row = {"shape": shape["name"], "mask": mask["mask"], "density": f"{mask['density']:.3f}"}
            row |= {"kernel": _number(kernel), "of ideal": _number(of_ideal(forward, mask, kernel))}
            for method in ESTIMATORS:
                whole = mask["whole_ms"][method]
                row |= {
                    f"whole, {method}": _number(whole),
                    f"of ideal, {method}": _number(of_ideal(forward, mask, whole)),
                }
            row |= {"backward": _number(mask["backward_ms"])}
            row |= {"backward, of ideal": _number(of_ideal(backward, mask, mask["backward_ms"]))}
            row |= {"scratch": _number(mask["scratch_over_kv"][ESTIMATORS[0]])}
            rows.append(row)
    return rows


def step_rows(shapes: list[Times]) -> list[dict[str, str]]:
    masks = [(shape["name"], find_mask(shape, "pyramid", 0.15)) for shape in shapes]
    return [{"shape": name} | {s: _number(ms, 3) for s, ms in mask["steps_ms"].items()} for name, mask in masks]


def best(shape: Times, what: str) -> float | None:
    """The least time of the dense kernels that run."""
    return min((t[what] for t in shape["dense"].values() if t.get(what) is not None), default=None)


def find_mask(shape: Times, name: str, density: float) -> Times:
    return next(m for m in shape["masks"] if m["mask"] == name and m["wanted_density"] == density)


def of_ideal(dense: float | None, mask: Times, measured: float | None) -> float | None:
    """Share of the ideal speed: dense time x density over the measured time."""
    return None if dense is None else _ratio(dense * mask["density"], measured)


def _overheads(mask: Times, method: str, dense: float | None) -> float | None:
    parts = [mask["steps_ms"][step] for step in ("pyramid", f"importance, {method}", "selection", "schedule")]
    return None if None in parts else _ratio(sum(parts), dense)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole


def _target(name: str, relation: str, bound: float, measured: float | None) -> dict[str, str]:
    met = None if measured is None else measured >= bound if relation == ">=" else measured <= bound
    verdict = {None: "not measured", True: "pass", False: "FAIL"}[met]
    return {"target": name, "wanted": f"{relation} {bound:g}", "measured": _number(measured, 3), "": verdict}


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines, columns padded so that they also read well in a terminal."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
