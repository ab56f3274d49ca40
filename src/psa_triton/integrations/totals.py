"""Adding up attention calls, for the statistics of every integration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

Key = TypeVar("Key")


@dataclass
class Total:
    """Sum over the calls of one key."""

    calls: int = 0
    work: int = 0
    """What dense attention would do: pairs of a query and a key."""
    density: torch.Tensor | float = 0.0
    """Each call's density times its work; on the device, so that adding never waits for it."""
    seconds: float = 0.0

    @property
    def mean_density(self) -> float:
        """Mean density, each call weighing as much as its work; waits for the device."""
        return float(self.density) / self.work


class Totals(Generic[Key]):
    """Adds up calls by key, so that memory is bounded by the number of keys however long a run is."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Total] = {}

    def add(self, key: Key, work: int, density: torch.Tensor | float, seconds: float) -> None:
        """Add one attention call; `density` is a scalar."""
        total = self.by_key.setdefault(key, Total())
        total.calls += 1
        total.work += work
        total.density = total.density + density * work
        total.seconds += seconds


def mean_over_work(records: Iterable[Any], field: str) -> float | None:
    """Mean of a field of records, weighed by their `work`; None without any."""
    pairs = [(record.work, getattr(record, field)) for record in records]
    total = sum(work for work, _ in pairs)
    return sum(work * value for work, value in pairs) / total if total else None
