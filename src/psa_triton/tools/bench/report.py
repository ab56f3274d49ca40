"""A run of `psa bench` as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from psa_triton.tools.bench.measure import DENSE, FLEX, FLEX_SPARSE, KERNEL, PSA, Case
from psa_triton.tools.bench.verdict import Verdict
from psa_triton.tools.files import Write, write_file
from psa_triton.tools.shapes import AttentionShape

_STYLES = {
    DENSE: ("dense, torch SDPA", "#666666", "o-"),
    FLEX: ("dense, flex_attention", "#bbbbbb", "s-"),
    FLEX_SPARSE: ("block-sparse, flex_attention", "#e69f00", "s--"),
    KERNEL: ("PSA kernel alone", "#56b4e9", "^--"),
    PSA: ("PSA, whole operator", "#0072b2", "o-"),
}


def report(shape: AttentionShape, cases: Sequence[Case], verdict: Verdict, **settings: Any) -> dict[str, Any]:
    """All of a run as plain data; `settings` is what else it was made with."""
    return {
        **settings,
        "shape": asdict(shape),
        "cases": [{**asdict(case), "speedup": case.speedup} for case in cases],
        "verdict": {**asdict(verdict), "sentence": verdict.sentence()},
    }


def plot(shape: AttentionShape, cases: Sequence[Case], title: str, path: Path, write: Write = write_file) -> None:
    """Seconds over tokens, both logarithmic, as PNG, by `write`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (label, colour, style) in _STYLES.items():
        points = [(case.tokens, case.seconds[name]) for case in cases if name in case.seconds]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds", title=title)
    ticks = [case.tokens for case in cases]
    axes.set_xticks(ticks, [f"{tokens:,}" for tokens in ticks], rotation=30)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write(path, buffer.getvalue())
