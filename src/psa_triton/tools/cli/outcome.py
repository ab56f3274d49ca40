"""How videos went, in a line each and in a line for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psa_triton.tools.generation import Cost, Failure, GeneratedVideo

_SHOWN = 5
"""Names of a list that are shown."""


def outcome_line(path: Path, outcome: GeneratedVideo | Failure) -> str:
    """Time and density of a video, or why there is none."""
    if isinstance(outcome, Failure):
        return f"{path}: failed: {reason(outcome.error)}"
    cost = outcome.cost
    together = "" if cost.videos == 1 else f" for {cost.videos} videos together"
    line = f"{path}: {cost.total_seconds:.1f} s{together}, {cost.attention_seconds:.1f} s of it in self-attention"
    if cost.attention_density is None:
        return f"{line}; all of it dense ({', '.join(cost.dense_reasons)})"
    return (
        f"{line}; density {cost.attention_density:.1%}, {cost.attention_density_with_estimation:.1%} with estimation, "
        f"{cost.run_density_with_estimation:.1%} over the whole run"
    )


def failure_line(failure: Failure) -> str:
    """Which video could not be made, and why."""
    return f"{failure.job.path.name} ({failure.job.request.prompt}): {reason(failure.error)}"


def summary_line(folder: Path, costs: Sequence[Cost], *, skipped: int, failed: int, seconds: float) -> str:
    """What a run made, in how long, at which density, and where it is.

    Args:
        folder: of the videos.
        costs: one a video that was made.
        skipped: videos that were there.
        failed: videos that could not be made.
        seconds: from the first video to the last.
    """
    counts = f"{len(costs)} made, {skipped} skipped, {failed} failed"
    densities = [cost.run_density_with_estimation for cost in costs if cost.run_density_with_estimation is not None]
    density = f", mean density of self-attention {sum(densities) / len(densities):.1%}" if densities else ""
    return f"{counts}; {seconds:.1f} s{density}; files in {folder}"


def reason(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def few(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
