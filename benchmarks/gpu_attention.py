"""PSA on a GPU against the best dense attention, in one run: `python benchmarks/gpu_attention.py`.

Needs torch, triton and pydantic alone and takes under 8 minutes. First every shape is checked against the definition in
float64; if a result is off, nothing is timed. Forward times are those of CUDA-graph replays, so they hold no launch
overhead and prove that nothing on the way waits for the host; every run starts with a cold L2 cache, and the median
counts.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gpu.cases import ESTIMATORS, SHAPES, SMALL_SHAPES, make_inputs
from gpu.checks import MARGIN, check_backward, check_forward
from gpu.measure import DENSITIES, SMALL_DENSITIES, Times, measure_dense, measure_flex, measure_masks
from harness import Report, Run, heading, options, table

from psa_triton.impl import is_interpreting
from psa_triton.tools.shapes import AttentionShape

DTYPE = torch.bfloat16
FLEX_SECONDS = 330
"""FlexAttention compiles for long: shapes that come later than this go without, to keep the run under 8 minutes."""
TARGETS = {"kernel": 0.8, "whole": 0.7, "overheads": 0.03, "scratch": 1.2, "dense": 1.25}
"""At density .15; the last at density 1."""


def find_device(check: bool) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if check and is_interpreting():
        return torch.device("cpu")
    sys.exit("no GPU found; without one, only TRITON_INTERPRET=1 with --check runs")


def check_shape(shape: AttentionShape, device: torch.device) -> dict[str, float]:
    """Errors over those of eager attention; ends the program if one is too large."""
    with torch.no_grad():
        errors = check_forward(make_inputs(shape, device, DTYPE))
    errors |= check_backward(shape, device, DTYPE)
    for what, error in errors.items():
        print(f"{shape.name}, {what}: {error:.2f} of eager attention's error", flush=True)
        if not error <= MARGIN:
            sys.exit(f"wrong result: expected at most {MARGIN:g} times the error of eager attention; nothing is timed")
    return errors


def measure(shape: AttentionShape, device: torch.device, densities: tuple[float, ...]) -> Times:
    x = make_inputs(shape, device, DTYPE)
    return {"name": shape.name, "shape": asdict(shape), "dense": measure_dense(x), "masks": measure_masks(x, densities)}


def measure_flex_in_time(shape: AttentionShape, device: torch.device, began: float) -> Times:
    if time.monotonic() - began > FLEX_SECONDS:
        return {"refused": "left out to keep the run short"}
    return measure_flex(make_inputs(shape, device, DTYPE))


def describe_gpu() -> dict[str, Any]:
    """Versions of driver and libraries."""
    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    found = {"driver": driver, "cuda": torch.version.cuda, "hip": torch.version.hip}
    return found | {"cudnn": torch.backends.cudnn.version()}


def page(report: Report) -> str:
    """Milliseconds beside what they would ideally be, and the targets."""
    shapes, libraries = report["shapes"], ", ".join(f"{name} {version}" for name, version in report["gpu"].items())
    words = (
        f"{libraries}. Milliseconds, bfloat16, batch 1. *of ideal*: best dense time x density / time.",
        "*whole*: importance, selection, pyramid, schedule and kernel. *scratch*: memory beside inputs and output,",
        "over that of K and V.",
        "",
    )
    lines = heading(report, "PSA on a GPU against dense attention", *words)
    for title, rows in (
        (f"Targets, set for an H200; {shapes[0]['name']}", target_rows(shapes[0])),
        ("Dense attention, and FlexAttention over the pyramid of density .15", dense_rows(shapes)),
        ("Sparse attention", sparse_rows(shapes)),
        ("Steps of the pyramid of density .15", step_rows(shapes)),
    ):
        lines += [f"## {title}", "", *table(list(rows[0]), [list(row.values()) for row in rows]), ""]
    return "\n".join(lines)


def target_rows(shape: Times) -> list[dict[str, str]]:
    """Bound, measured value and verdict of each target."""
    dense = best(shape, "forward_ms")
    mask, full = find_mask(shape, "pyramid", 0.15), find_mask(shape, "levels 1/0", 1.0)
    kernel = of_ideal(dense, mask, mask["steps_ms"]["kernel"])
    measured = [
        ("kernel, of ideal", ">=", TARGETS["kernel"], kernel),
        ("density 1, of dense time", "<=", TARGETS["dense"], _ratio(full["steps_ms"]["kernel"], dense)),
    ]
    for method in ESTIMATORS:
        parts = [mask["steps_ms"][step] for step in ("pyramid", f"importance, {method}", "selection", "schedule")]
        overheads = None if None in parts else _ratio(sum(parts), dense)
        whole = of_ideal(dense, mask, mask["whole_ms"][method])
        measured += [
            (f"everything with {method}, of ideal", ">=", TARGETS["whole"], whole),
            (f"overheads with {method}, of dense time", "<=", TARGETS["overheads"], overheads),
            (f"scratch with {method}, of K and V", "<=", TARGETS["scratch"], mask["scratch_over_kv"][method]),
        ]
    return [_target(*each) for each in measured]


def dense_rows(shapes: list[Times]) -> list[dict[str, str]]:
    return [
        {
            "shape": shape["name"],
            "attention": name,
            "forward": _number(times.get("forward_ms")),
            "backward": _number(times.get("backward_ms")),
            "did not run": times.get("refused", ""),
        }
        for shape in shapes
        for name, times in {**shape["dense"], "flex over the pyramid": shape["flex"]}.items()
    ]


def sparse_rows(shapes: list[Times]) -> list[dict[str, str]]:
    rows = []
    for shape in shapes:
        forward, backward = best(shape, "forward_ms"), best(shape, "backward_ms")
        for mask in shape["masks"]:
            row = {"shape": shape["name"], "mask": mask["mask"], "density": f"{mask['density']:.3f}"}
            kernel = {"kernel": mask["steps_ms"]["kernel"]}
            for name, ms in (kernel | {f"whole, {method}": ms for method, ms in mask["whole_ms"].items()}).items():
                row |= {name: _number(ms), f"{name}, of ideal": _number(of_ideal(forward, mask, ms))}
            row |= {"backward": _number(mask["backward_ms"])}
            row |= {"backward, of ideal": _number(of_ideal(backward, mask, mask["backward_ms"]))}
            rows.append(row | {"scratch": _number(mask["scratch_over_kv"][ESTIMATORS[0]])})
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


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole


def _target(name: str, relation: str, bound: float, measured: float | None) -> dict[str, str]:
    met = None if measured is None else measured >= bound if relation == ">=" else measured <= bound
    verdict = {None: "not measured", True: "pass", False: "FAIL"}[met]
    return {"target": name, "wanted": f"{relation} {bound:g}", "measured": _number(measured, 3), "": verdict}


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help=f"one shape: {SHAPES[0].name}")
    parser.add_argument("--check", action="store_true", help="small shapes, to try this script; not timed on a CPU")
    args = parser.parse_args()
    began, device = time.monotonic(), find_device(args.check)
    shapes = SMALL_SHAPES if args.check else SHAPES[:1] if args.quick else SHAPES
    densities = SMALL_DENSITIES if args.check else DENSITIES
    run = Run("gpu_attention", args.output, device)
    errors = {shape.name: run.piece(f"{shape.name}: errors", check_shape, shape, device) for shape in shapes}
    found = [run.piece(shape.name, measure, shape, device, densities) for shape in shapes]
    for shape, times in zip(shapes, found, strict=True):
        times["flex"] = run.piece(f"{shape.name}: FlexAttention", measure_flex_in_time, shape, device, began)
    run.write({"gpu": describe_gpu(), "errors_over_eager": errors, "shapes": found}, page)


if __name__ == "__main__":
    main()
