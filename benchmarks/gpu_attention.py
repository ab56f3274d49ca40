"""PSA on a GPU against the best dense attention, in one run: `python benchmarks/gpu_attention.py`.

Needs torch and triton alone and takes under 8 minutes. First every shape is checked against the definition in float64;
if a result is off, nothing is timed. Forward times are those of CUDA-graph replays, so they hold no launch overhead and
prove that nothing on the way waits for the host; every run starts with a cold L2 cache, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gpu.cases import SHAPES, SMALL_SHAPES, TARGET_SHAPE, Shape, make_inputs
from gpu.checks import MARGIN, check_backward, check_forward
from gpu.measure import DENSITIES, SMALL_DENSITIES, measure_dense, measure_flex, measure_masks
from gpu.report import markdown

from psa_triton.impl import is_interpreting
from psa_triton.tools.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
DTYPE = torch.bfloat16
FLEX_SECONDS = 330
"""FlexAttention compiles for long: shapes that come later than this go without, to keep the run under 8 minutes."""


def find_device(check: bool) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if check and is_interpreting():
        return torch.device("cpu")
    sys.exit("no GPU found; without one, only TRITON_INTERPRET=1 with --check runs")


def check_shapes(shapes: tuple[Shape, ...], device: torch.device) -> dict[str, dict[str, float]]:
    """Errors of every shape over those of eager attention; ends the program if one is too large."""
    checked = {}
    for shape in shapes:
        with torch.no_grad():
            errors = check_forward(make_inputs(shape, device, DTYPE))
        errors |= check_backward(shape, device, DTYPE)
        checked[shape.name] = errors
        for what, error in errors.items():
            print(f"{shape.name}, {what}: {error:.2f} of eager attention's error", flush=True)
            if not error <= MARGIN:
                sys.exit(
                    f"wrong result: expected at most {MARGIN:g} times the error of eager attention; nothing is timed"
                )
    return checked


def measure(shape: Shape, device: torch.device, densities: tuple[float, ...]) -> dict[str, Any]:
    print(f"measuring {shape.name}", flush=True)
    x = make_inputs(shape, device, DTYPE)
    return {"name": shape.name, "shape": asdict(shape), "dense": measure_dense(x), "masks": measure_masks(x, densities)}


def measure_flex_in_time(shape: Shape, device: torch.device, began: float) -> dict[str, Any]:
    if time.monotonic() - began > FLEX_SECONDS:
        return {"refused": "left out to keep the run short"}
    print(f"measuring FlexAttention, {shape.name}", flush=True)
    return measure_flex(make_inputs(shape, device, DTYPE))


def describe(device: torch.device) -> dict[str, Any]:
    """Date, command, hardware and versions."""
    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    cuda = {"cuda": torch.version.cuda, "hip": torch.version.hip, "cudnn": torch.backends.cudnn.version()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/gpu_attention.py", *sys.argv[1:]]),
        "hardware": hardware(device) | {"driver": driver},
        "versions": versions() | cuda,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"one shape: {TARGET_SHAPE.name}")
    parser.add_argument("--check", action="store_true", help="small shapes, to try this script; not timed on a CPU")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the Markdown")
    args = parser.parse_args()
    began = time.monotonic()
    device = find_device(args.check)
    shapes = SMALL_SHAPES if args.check else (TARGET_SHAPE,) if args.quick else SHAPES
    densities = SMALL_DENSITIES if args.check else DENSITIES
    report = describe(device) | {"errors_over_eager": check_shapes(shapes, device)}
    report["shapes"] = [measure(shape, device, densities) for shape in shapes]
    for shape, found in zip(shapes, report["shapes"], strict=True):
        found["flex"] = measure_flex_in_time(shape, device, began)
    report["seconds"] = round(time.monotonic() - began)

    page = markdown(report)
    print(f"\n{page}")
    gpu = (report["hardware"]["gpu"] or "cpu").lower().replace(" ", "-")
    stem = f"gpu_attention_{report['date'][:10]}_{gpu}"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.output / f"{stem}.md").write_text(page)
    print(f"written: {args.output / stem}.json and .md, after {report['seconds']} s")


if __name__ == "__main__":
    main()
