"""Was it worth it, and why: what a run comes to, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from psa_triton.tools.evaluation.measures import PSNR_CAP
from psa_triton.tools.evaluation.summary import Column, pace
from psa_triton.tools.generation import Cost

CLOSE = 30.0
"""PSNR to dense, dB, from which a viewer hardly tells two videos apart."""
OTHER = 25.0
"""PSNR to dense, dB, below which it is another video."""
FEW_TOKENS = 4096
"""Below, what choosing and gathering keys cost is a large part of attention."""

_WAYS_TO_SPARSE = {
    "warm-up": "more denoising steps than the dense ones, or --max-error 0.1 instead of these",
    "density": "a preset that reads less (psa_refresh, psa_budget), or --min-tokens 0 to run it sparse all the same",
    "fewer than": "a larger video, or --min-tokens 0 to run it sparse all the same",
    "is faster below": "a larger video, or --min-tokens 0 to run it sparse all the same",
    "last steps": "fewer --dense-last-steps, or more denoising steps",
    "dense layer": "fewer --dense-layers",
}
"""What to do about a reason for which all ran dense, by words in it; where there are several, the first counts."""


@dataclass(frozen=True)
class Verdict:
    """What a run comes to.

    Attributes:
        answer: whether it was worth it; a sentence.
        cause: why it came so.
        advice: what to try next.
    """

    answer: str
    cause: str
    advice: str

    def __str__(self) -> str:
        return f"{self.answer} Why: {self.cause}. Try: {self.advice}."


class _Figures(NamedTuple):
    """What the verdict on a candidate goes by, in means over the cases.

    Attributes:
        run: what its attention did of dense attention's work, estimates and dense steps included.
        sparse: the same of its sparse calls.
        total: how many times as fast the run was.
        attention: likewise self-attention.
        share: self-attention's of a dense run's time.
        tokens: that attend to each other; None where it was not recorded.
        psnr: to dense, dB; None for the same frames.
    """

    run: float
    sparse: float
    total: float
    attention: float
    share: float
    tokens: float | None
    psnr: float | None

    @property
    def dense(self) -> float:
        """Of dense attention's work, what was done in dense steps and layers."""
        return max(0.0, (self.run - self.sparse) / (1 - self.sparse)) if self.sparse < 1 else 0.0

    @property
    def is_few(self) -> bool:
        return self.tokens is not None and self.tokens < FEW_TOKENS

    @property
    def is_close(self) -> bool:
        return self.psnr is None or self.psnr >= CLOSE


def judge(columns: Sequence[Column]) -> list[tuple[Column, Verdict]]:
    """The verdict on each candidate, best first: those that stay close before others, then by time.

    Args:
        columns: as `summarise` makes them.
    """
    dense = next(column for column in columns if column.role == "dense")
    candidates = [column for column in columns if column.role == "psa"]

    def rank(column: Column) -> tuple[bool, float]:
        psnr = column.mean("psnr")
        return (psnr is not None and psnr < OTHER, -(column.mean("total_speedup") or 0.0))

    return [(column, _judge(dense, column)) for column in sorted(candidates, key=rank)]


def _judge(dense: Column, candidate: Column) -> Verdict:
    run, sparse = (candidate.mean(f"{part}_density_with_estimation") for part in ("run", "attention"))
    seconds, before = dense.mean("attention_seconds"), dense.mean("total_seconds")
    if run is None or sparse is None or seconds is None or before is None:
        cause = candidate.notes.get("attention_density", "no call of its was sparse")
        return Verdict(f"No time was saved: {candidate.label} ran dense throughout.", cause, _way_to_sparse(cause))
    total, attention = (candidate.mean(f"{part}_speedup") or 1.0 for part in ("total", "attention"))
    psnr = candidate.mean("psnr")
    psnr = None if psnr is None or psnr >= PSNR_CAP else psnr
    found = _Figures(
        run=run,
        sparse=sparse,
        total=total,
        attention=attention,
        share=seconds / before,
        tokens=candidate.mean("tokens"),
        psnr=psnr,
    )
    return Verdict(_answer(candidate.label, found), _cause(found), _advice(found))


def _answer(label: str, found: _Figures) -> str:
    faster = pace(found.total)
    if not _is_faster(found.total):
        worth = "No gain here" if faster == "as fast" else "Not worth it here"
    elif found.psnr is not None and found.psnr < OTHER:
        worth = "Not worth it"
    else:
        worth = "Worth it" if found.is_close else "Worth it if details may change"
    if found.psnr is None:
        video = "made the same frames"
    elif found.is_close:
        video = f"stayed close to its video ({found.psnr:.1f} dB)"
    else:
        kind = "made another video" if found.psnr < OTHER else "strayed from its video"
        video = f"{kind} ({found.psnr:.1f} dB)"
    return f"{worth}: {label} was {faster} as dense attention, and {video}."


def _cause(found: _Figures) -> str:
    work = f"attention did {found.run:.0%} of the dense work"
    if found.dense > 0.05:
        work += f", {found.dense:.0%} of it in dense steps and layers"
    if _is_faster(found.total):
        causes = [f"{work}; it is {found.share:.0%} of a dense run's time"]
    elif _is_faster(found.attention):
        faster = f"self-attention was {found.attention:.1f} times as fast"
        causes = [f"{faster}, but is {found.share:.0%} of a dense run's time"]
    elif found.is_few:
        causes = [
            f"{found.tokens:,.0f} tokens are few: choosing and gathering keys costs as much as it saves, or more",
            work,
        ]
    else:
        causes = [work]
    if not found.is_close and found.dense < 0.05:
        causes.append("hardly a step was dense, and the first ones decide where things are")
    return "; ".join(causes)


def _advice(found: _Figures) -> str:
    if not found.is_close:
        return "--max-error 0.1, more warm-up steps, or a larger budget"
    if _is_faster(found.total):
        return "--max-error 0.2 or a smaller budget, if it may stray further"
    if _is_faster(found.attention):
        return f"nothing in attention: it cannot make the run more than {1 / (1 - found.share):.1f} times as fast"
    if found.is_few:
        return "a larger video (psa bench tells from how many tokens on it pays), or dense attention at this size"
    return "a preset that reads less (psa_budget), or --max-error 0.1 instead of dense steps"


def judge_alone(costs: Sequence[Cost]) -> str | None:
    """Why videos made without dense ones beside them saved little or nothing; None if they did, or were to be dense.

    Args:
        costs: one a video, at least one.
    """
    reasons = sorted({reason for cost in costs for reason in cost.dense_reasons})
    if reasons == ["dense preset"]:
        return None
    runs = [cost.run_density_with_estimation for cost in costs if cost.attention_density is not None]
    if not runs:
        why = ", ".join(reasons)
        return f"No time was saved: all attention ran dense. Why: {why}. Try: {_way_to_sparse(why)}."
    run = fmean(run for run in runs if run is not None)
    if run <= 0.6 or not reasons:
        return None
    return (
        f"Little was saved: attention did {run:.0%} of the dense work. Why: dense parts ({', '.join(reasons)}). Try: "
        "--max-error 0.1 instead of dense steps, or a preset that reads less (psa_refresh, psa_budget)."
    )


def _way_to_sparse(why_dense: str) -> str:
    return next((way for words, way in _WAYS_TO_SPARSE.items() if words in why_dense), "another preset or model")


def _is_faster(speedup: float) -> bool:
    return pace(speedup).endswith("times as fast")
