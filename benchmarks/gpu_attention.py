"""PSA on a GPU against the best dense attention: `python benchmarks/gpu_attention.py`.

| | |
|---|---|
| `--smoke` | every kernel once against its definition, on small shapes; versions; what a launch needs. 2 minutes |
| `--quick` | one shape: checked against the definition, dense attention, the steps, the presets. 3 minutes |
| (nothing) | all shapes; each is in the files as soon as it is measured. 8 minutes |
| `--ab OLD` | `--quick` of another commit, or of a folder that holds one, and of this checkout, in turn. 8 minutes |

Kernels are compiled first, in parallel processes. What fails is written down, and the next piece begins. Times are
those of CUDA-graph replays, so they hold no launch overhead and prove that nothing on the way waits for the host; every
run starts with a cold L2 cache, and the median counts. Needs torch and triton; shipped presets need pydantic and yaml
too. Without a GPU `TRITON_INTERPRET=1` rehearses all of it on tiny shapes, and times nothing.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

# `--ab` runs this script on another checkout's library.
sys.path.insert(0, os.path.join(os.environ.get("PSA_CHECKOUT", Path(__file__).parents[1]), "src"))

from gpu import ab, measure
from gpu.cases import DENSE, MASKS, SHAPES, Inputs, small
from gpu.checks import Check, check_rows, smoke_checks
from gpu.prepare import compile_all, record_launches
from harness import Report, Run, heading, options, table

from psa_triton.impl import is_interpreting
from psa_triton.tools.shapes import AttentionShape

REAL: Final = torch.cuda.is_available()
HAS_PRESETS: Final = all(importlib.util.find_spec(name) for name in ("pydantic", "yaml"))
TARGETS: Final = (
    ("kernels, of ideal", ">=", 0.85),
    ("whole, pooled, of ideal", ">=", 0.7),
    ("all but the kernels, pooled, of dense", "<=", 0.02),
    ("all but the kernels, sampled, of dense", "<=", 0.05),
    ("all but the kernels, antidiagonal, of dense", "<=", 0.08),
    ("kernels at density 1, of dense", "<=", 1.25),
)
"""For an H200, the first shape, density .15."""


class Session:
    """The pieces of one run: every one that ends, or fails, is written down before the next begins."""

    def __init__(self, run: Run, minutes: float) -> None:
        self._run = run
        # A run that goes on in a new process keeps its time.
        began = float(os.environ.setdefault("GPU_ATTENTION_BEGAN", str(time.time())))
        self._until = began + 60 * minutes
        self.pieces: dict[str, Any] = {}

    def measure(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """What a piece finds, or why it does not."""
        self.pieces[name] = self._run.piece(name, self._attempt, measure, *arguments)
        if failed := failure(self.pieces[name]):
            print(f"{name}: {failed}", flush=True)
        if REAL and failed:
            try:
                torch.cuda.synchronize()
            except RuntimeError:  # no piece will run in this process any more
                os.execv(sys.executable, [sys.executable, *sys.argv])
        return self.pieces[name]

    def _attempt(self, measure: Callable[..., Any], *arguments: Any) -> Any:
        if time.time() > self._until:
            return {"failed": "left out, the time is up"}
        try:
            return measure(*arguments)
        except Exception as error:  # whatever goes wrong is what there is to tell
            return {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}

    def write(self, page: Callable[[Report], str], *, last: bool = False) -> None:
        self._run.write({"pieces": self.pieces}, page, last=last)


def failure(found: Any) -> str | None:
    """Why a piece is no good: it ended with an error, or an error in it is too large."""
    if not isinstance(found, dict):
        return None
    wrong = [
        f"{what} is {error:.2f} of what is allowed" for what, error in found.get("errors", {}).items() if not error <= 1
    ]
    return found.get("failed") or ", ".join(wrong) or None


def describe() -> dict[str, Any]:
    """The GPU, versions of drivers and libraries, and what Triton's launcher is built with."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if compiler is None or not header.is_file():
        raise RuntimeError(f"Triton's launches need a C compiler (found {compiler}) and {header}; install both")
    found: dict[str, Any] = {"compiler": compiler, "cuda": torch.version.cuda, "hip": torch.version.hip}
    if REAL:
        found |= {"capability": torch.cuda.get_device_capability(), "cudnn": torch.backends.cudnn.version()}
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return found


def smoke_work(device: torch.device) -> list[Callable[[], Any]]:
    return [partial(check.run, "triton", torch.bfloat16) for check in smoke_checks(device)]


def smoke(session: Session, device: torch.device) -> None:
    """Every kernel against its definition; then which ones nothing launched."""
    if REAL:
        session.measure("compiled beforehand", compile_all, smoke_work)
    for check in smoke_checks(device):
        session.measure(check.name, check_small, check)
    launched = {name for found in session.pieces.values() for name in found.get("kernels", ())}
    left_out = known_kernels() - launched
    session.measure("every kernel was launched", lambda: {"errors": {name: math.inf for name in left_out}})


def known_kernels() -> set[str]:
    modules = [module for path, module in sys.modules.items() if path.startswith("psa_triton.")]
    found = [(name, value) for module in modules for name, value in vars(module).items()]
    return {name for name, value in found if name.endswith("_kernel") and hasattr(value, "fn")}


def check_small(check: Check) -> dict[str, Any]:
    found: dict[str, float] = {}
    launches = record_launches(lambda: found.update(check.errors()))
    return {"errors": found, "kernels": sorted({launch.kernel.fn.__name__ for launch in launches})}


def check_shape(shape: AttentionShape, device: torch.device) -> dict[str, Any]:
    return {"errors": check_rows(Inputs.draw(shape, device))}


def run_shapes(session: Session, device: torch.device, shapes: list[AttentionShape], flex: bool) -> None:
    if REAL:
        session.measure("compiled beforehand", compile_all, measure.launching, shapes, HAS_PRESETS)
    if not HAS_PRESETS:
        print("presets: pydantic or yaml is missing, they are not measured", flush=True)
    for shape in shapes:
        session.measure(f"{shape.name}: right", check_shape, shape, device)
        for name, piece in measure.pieces(shape, presets=HAS_PRESETS, flex=flex).items():
            session.measure(f"{shape.name}: {name}", lambda piece=piece, shape=shape: piece(Inputs.draw(shape, device)))
        session.write(page)


def page(report: Report) -> str:
    """Milliseconds beside what they would ideally be, the targets, and what failed."""
    pieces = report["pieces"]
    shapes = list(dict.fromkeys(name.partition(": ")[0] for name in pieces if ": " in name))
    failed = {name: why for name, found in pieces.items() if (why := failure(found))}
    lines = heading(
        report,
        "PSA on a GPU against dense attention",
        f"{pieces.get('environment')}. bfloat16, batch 1. *Of ideal*: dense time x density / time. The base is cuDNN;",
        "torch's flash attention is FlashAttention-2. *Scratch*: memory beside inputs and output, over K and V.",
        "",
    )
    lines += [f"**{len(failed)} of {len(pieces)} pieces failed**" if failed else "No piece failed.", ""]
    lines += [f"* {name}: {why}" for name, why in failed.items()] + [""] * bool(failed)
    for shape in shapes:
        base_name = next((name for name in DENSE if _at(pieces, shape, f"dense, {name}", "forward_ms")), None)
        base = _at(pieces, shape, f"dense, {base_name}", "forward_ms")
        of = {name.partition(": ")[2]: found for name, found in pieces.items() if name.startswith(f"{shape}: ")}
        rows = [row for name, found in of.items() for row in _rows(name, found, base)]
        lines += [f"## {shape}; base: {base_name or 'no dense attention ran'}", ""]
        lines += [*table(["piece", "figure", "value", "of ideal"], rows), ""]
        if shape == SHAPES[0].name:
            lines += [*table(["target", "wanted", "measured", ""], _target_rows(of, base)), ""]
    return "\n".join(lines)


def _at(pieces: dict[str, Any], shape: str, piece: str, figure: str) -> Any:
    return (pieces.get(f"{shape}: {piece}") or {}).get(figure)


def _rows(name: str, found: Any, base: float | None) -> list[list[str]]:
    """A row a figure; of ideal where it is the time of a whole attention."""
    rows = []
    for figure, value in ab.figures(found):
        is_attention = re.search(r"_ms: (attend|kernels|whole.*)$", figure)
        ideal = base * found["density"] / value if base and is_attention and found.get("density") else None
        rows.append([name, figure, f"{value:.3f}", "-" if ideal is None else f"{ideal:.2f}"])
    return rows


def _target_rows(of: dict[str, Any], base: float | None) -> list[list[str]]:
    found, full = of.get(next(iter(MASKS))) or {}, of.get("levels 1/0 1.0") or {}
    steps, attend = found.get("steps_ms") or {}, (found.get("kernels_ms") or {}).get("attend")
    measured: dict[str, float] = {}
    if base and attend and steps:
        measured["kernels, of ideal"] = base * found["density"] / attend
        measured["whole, pooled, of ideal"] = base * found["density"] / steps["whole, pooled"]
        for method in ("pooled", "sampled", "antidiagonal"):
            measured[f"all but the kernels, {method}, of dense"] = (steps[f"whole, {method}"] - attend) / base
    if base and full.get("kernels_ms"):
        measured["kernels at density 1, of dense"] = full["kernels_ms"]["attend"] / base
    rows = []
    for name, relation, bound in TARGETS:
        value = measured.get(name)
        met = None if value is None else value >= bound if relation == ">=" else value <= bound
        verdict = {None: "not measured", True: "pass", False: "FAIL"}[met]
        rows.append([name, f"{relation} {bound:g}", "-" if value is None else f"{value:.3f}", verdict])
    return rows


def ab_page(report: Report) -> str:
    lines = heading(report, "Two checkouts in turn", f"Old: `{report['old']}`. Medians of {ab.ROUNDS} rounds.", "")
    columns = ["figure", "old", "new", "new / old", "spread"]
    return "\n".join([*lines, *table(columns, ab.rows(report["figures"])), ""])


def main() -> int:
    parser = options(__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--smoke", action="store_true", help="every kernel once, on small shapes")
    mode.add_argument("--quick", action="store_true", help=f"one shape: {SHAPES[0].name}")
    mode.add_argument("--ab", metavar="OLD", help="compare with this commit, or the checkout in this folder")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no further piece begins")
    args = parser.parse_args()
    if not REAL and not is_interpreting():
        sys.exit("no GPU found; TRITON_INTERPRET=1 rehearses this script on tiny shapes")
    device = torch.device("cuda" if REAL else "cpu")
    run = Run("gpu_attention", args.output, device, "smoke" * args.smoke + "ab" * bool(args.ab))
    if args.ab:
        found = ab.compare(args.ab, Path(__file__), args.minutes)
        run.write({"old": args.ab, "figures": found}, ab_page)
        return 0
    session = Session(run, args.minutes)
    session.measure("environment", describe)
    if args.smoke:
        smoke(session, device)
    else:
        shapes = list(SHAPES[:1] if args.quick else SHAPES)
        run_shapes(session, device, shapes if REAL else [small(shape) for shape in shapes], flex=not args.quick)
    session.write(page, last=True)
    return 1 if any(map(failure, session.pieces.values())) else 0


if __name__ == "__main__":
    sys.exit(main())
