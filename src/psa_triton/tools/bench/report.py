"""What a run of `psa bench` says: from how many tokens on PSA pays, all numbers as plain data, and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from psa_triton.tools.bench.measure import DENSE, FLEX, FLEX_SPARSE, KERNEL, PSA, Case
from psa_triton.tools.shapes import AttentionShape
from psa_triton.tools.video import figure_png

_STYLES = {
    DENSE: ("dense, torch SDPA", "#666666", "o-"),
    FLEX: ("dense, flex_attention", "#bbbbbb", "s-"),
    FLEX_SPARSE: ("block-sparse, flex_attention", "#e69f00", "s--"),
    KERNEL: ("PSA kernel alone", "#56b4e9", "^--"),
    PSA: ("PSA, whole operator", "#0072b2", "o-"),
}


@dataclass(frozen=True)
class Verdict:
    """What the measured lengths say.

    Attributes:
        pays_from: tokens from which on the whole operator is faster than dense attention; None where it never was.
        longest: the longest length measured.
        tokens: length of the asked-for shape.
        speedup: of the operator there.
        measured: whether that length was measured; else both times are extended from the two longest that were.
    """

    pays_from: int | None
    longest: int
    tokens: int
    speedup: float
    measured: bool

    def sentence(self) -> str:
        """The verdict in words."""
        how = "measured" if self.measured else "extrapolated"
        at = f"at {self.tokens:,} tokens it is {self.speedup:.1f} times as fast as dense attention ({how})"
        if self.pays_from is None:
            return f"PSA does not pay here up to {self.longest:,} tokens, the longest measured; {at}."
        return f"PSA pays here from about {self.pays_from:,} tokens on; {at}."


def judge(cases: Sequence[Case], tokens: int) -> Verdict:
    """Judge cases of growing length for a shape of `tokens` tokens.

    Raises:
        ValueError: no case.
    """
    if not cases:
        raise ValueError("cases: expected at least one, got none")
    last = cases[-1]
    if last.tokens == tokens:
        return Verdict(_crossing(cases), last.tokens, tokens, last.speedup, measured=True)
    dense, sparse = (_extended(cases, name, tokens) for name in (DENSE, PSA))
    return Verdict(_crossing(cases), last.tokens, tokens, dense / sparse, measured=False)


def _crossing(cases: Sequence[Case]) -> int | None:
    """Where the speed-up last passes 1 on its way up, on a straight line in logarithms between two lengths."""
    if cases[-1].speedup <= 1:
        return None
    for shorter, longer in reversed(list(pairwise(cases))):
        if shorter.speedup <= 1:
            low, high = math.log(shorter.speedup), math.log(longer.speedup)
            part = -low / (high - low)
            return round(shorter.tokens * (longer.tokens / shorter.tokens) ** part)
    return cases[0].tokens


def _extended(cases: Sequence[Case], name: str, tokens: int) -> float:
    """Seconds at `tokens`: the power law through the two longest cases, the square of the length if there is but one.

    An exponent is kept between 1 and 2: attention grows no faster than the square, and no slower than its input.
    """
    last = cases[-1]
    exponent = 2.0
    if len(cases) > 1:
        before = cases[-2]
        slope = math.log(last.seconds[name] / before.seconds[name]) / math.log(last.tokens / before.tokens)
        exponent = min(2.0, max(1.0, slope))
    return last.seconds[name] * (tokens / last.tokens) ** exponent


def report(shape: AttentionShape, cases: Sequence[Case], verdict: Verdict, **settings: Any) -> dict[str, Any]:
    """All of a run as plain data; `settings` is what else it was made with."""
    return {
        **settings,
        "shape": asdict(shape),
        "cases": [{**asdict(case), "speedup": case.speedup} for case in cases],
        "verdict": {**asdict(verdict), "sentence": verdict.sentence()},
    }


def plot(cases: Sequence[Case], title: str) -> bytes:
    """Seconds over tokens, both logarithmic, as PNG."""
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
    return figure_png(figure, 130)
