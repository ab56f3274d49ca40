"""Adding up attention calls, for the statistics of every integration."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

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
    """Adds up calls by key, so that memory is bounded by the number of keys however long a run is.

    Threads may add to it at the same time. A copy starts from nothing: counts belong to what was counted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[Key, Total] = {}
        self._events: Counter[str] = Counter()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._by_key.clear()
            self._events.clear()

    def count(self, event: str) -> None:
        """Count something that is no attention call."""
        with self._lock:
            self._events[event] += 1

    def add(self, key: Key, work: int, density: torch.Tensor | float, seconds: float) -> None:
        """Add one attention call; `density` is a scalar."""
        with self._lock:
            total = self._by_key.setdefault(key, Total())
            total.calls += 1
            total.work += work
            total.density = total.density + density * work
            total.seconds += seconds

    def snapshot(self) -> tuple[dict[Key, Total], Counter[str]]:
        """The sums by key, and the counts by event, of one moment."""
        with self._lock:
            return {key: replace(total) for key, total in self._by_key.items()}, Counter(self._events)


def mean_over_work(records: Iterable[Any], field: str) -> float | None:
    """Mean of a field of records, weighed by their `work`; None without any."""
    pairs = [(record.work, getattr(record, field)) for record in records]
    total = sum(work for work, _ in pairs)
    return sum(work * value for work, value in pairs) / total if total else None
