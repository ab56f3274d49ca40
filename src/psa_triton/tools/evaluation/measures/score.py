"""What a measure gives."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any


class NotMeasured(Exception):
    """A measure cannot be taken, of these frames or on this machine; its text says why, and what to do."""


@dataclass(frozen=True)
class Score:
    """One number a frame.

    Attributes:
        frames: one a frame; none if the measure could not be taken.
        note: what to know of the numbers, or why there are none.
    """

    frames: tuple[float, ...]
    note: str | None = None

    @property
    def mean(self) -> float | None:
        """Over the frames; None if there are none."""
        return fmean(self.frames) if self.frames else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"mean": self.mean, "frames": list(self.frames), "note": self.note}
