"""Adding up attention calls, for the statistics of every integration."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch

Stats = TypeVar("Stats")


class Tally(NamedTuple):
    """What one call read and computed; by default, what a dense one does."""

    density: torch.Tensor | float = 1.0
    """A scalar; on the device, so that counting never waits for it."""
    overhead: float = 0.0
    """Estimate of importance and probe, as a share of dense attention."""
    error: tuple[torch.Tensor, torch.Tensor] | None = None
    """Measured, and the standard error of that; scalars."""


@dataclass
class Total:
    """Sum over the calls of one key."""

    calls: int = 0
    work: int = 0
    """What dense attention would do: pairs of a query and a key."""
    density: torch.Tensor | float = 0.0
    """Each call's density times its work."""
    overhead: float = 0.0
    """Each call's, times its work."""
    measured: int = 0
    """Calls whose error was measured."""
    error: torch.Tensor | float = 0.0
    """Their errors."""
    error_variance: torch.Tensor | float = 0.0
    """Squared standard errors of these."""
    seconds: float = 0.0

    @property
    def mean_error(self) -> float | None:
        """Mean measured error of the calls; None if none was measured. Waits for the device."""
        return float(self.error) / self.measured if self.measured else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of `mean_error`."""
        return float(self.error_variance) ** 0.5 / self.measured if self.measured else None


class Snapshot(NamedTuple):
    """What was counted up to one moment."""

    totals: Mapping[Any, Total]
    events: Counter[str]
    timed: bool

    def fields(self, key: Any) -> dict[str, Any]:
        """What records of every integration say of the calls of a key. Waits for the device."""
        total = self.totals[key]
        density = float(total.density) / total.work
        return {
            **vars(key),
            "calls": total.calls,
            "density": density,
            "density_with_estimation": density + total.overhead / total.work,
            "seconds": total.seconds if self.timed else None,
        }

    def summary(self, records: Sequence[Any]) -> dict[str, Any]:
        """What summaries of every integration say of all records."""
        sparse = [record for record in records if record.sparse]
        dense = [record for record in records if not record.sparse]
        return {
            "sparse_calls": sum(record.calls for record in sparse),
            "dense_calls": sum(record.calls for record in dense),
            "sparse_density": mean_over_work(sparse, "density"),
            "sparse_density_with_estimation": mean_over_work(sparse, "density_with_estimation"),
            "run_density": mean_over_work(records, "density"),
            "run_density_with_estimation": mean_over_work(records, "density_with_estimation"),
            "sparse_seconds": sum((record.seconds for record in sparse), 0.0) if self.timed else None,
            "dense_seconds": sum((record.seconds for record in dense), 0.0) if self.timed else None,
        }


class Recorder(Generic[Stats]):
    """Adds up calls by key, so that memory is bounded by the number of keys however long a run is.

    Densities stay tensors on their device until `stats` is called: recording never waits for it. Threads may record at
    the same time. A copy starts from nothing: counts belong to what was counted.

    Args:
        report: makes the statistics of a snapshot.
        timed: whether calls come with their seconds.
    """

    def __init__(self, report: Callable[[Snapshot], Stats], timed: bool) -> None:
        self.timed = timed
        self._report = report
        self._lock = threading.Lock()
        self._totals: dict[Any, Total] = {}
        self._events: Counter[str] = Counter()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._report, self.timed)

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._totals.clear()
            self._events.clear()

    def count(self, event: str, times: int = 1) -> None:
        """Count something that is no attention call."""
        with self._lock:
            self._events[event] += times

    def add(self, key: Any, work: int, tally: Tally, seconds: float = 0.0) -> None:
        """Add one attention call.

        Args:
            key: of its record, hashable.
            work: pairs of a query and a key.
            tally: of the call.
            seconds: that it took; 0 if not timed.
        """
        with self._lock:
            total = self._totals.setdefault(key, Total())
            total.calls += 1
            total.work += work
            total.density = total.density + tally.density * work
            total.overhead += tally.overhead * work
            if tally.error is not None:
                total.measured += 1
                total.error = total.error + tally.error[0]
                total.error_variance = total.error_variance + tally.error[1] ** 2
            total.seconds += seconds

    def clock(self, device: torch.device) -> float:
        """The time when all work of the device is done, seconds; 0 if calls are not timed."""
        return now(device) if self.timed else 0.0

    def stats(self) -> Stats:
        """The statistics of this moment; waits for the device."""
        with self._lock:
            totals = {key: replace(total) for key, total in self._totals.items()}
            snapshot = Snapshot(totals, Counter(self._events), self.timed)
        return self._report(snapshot)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Totals over all records. Means weigh a call by the work of dense attention: pairs of a query and a key."""

    sparse_calls: int
    """Attention calls that ran PSA."""
    dense_calls: int
    """Attention calls that ran dense."""
    sparse_density: float | None
    """Mean density of the sparse calls; None without any."""
    sparse_density_with_estimation: float | None
    """The same with the cost of estimating importance."""
    run_density: float | None
    """Mean density of all calls, dense ones at 1; None before the first call."""
    run_density_with_estimation: float | None
    """The same with the cost of estimating importance."""
    sparse_seconds: float | None
    """Time in sparse calls; None if not asked for."""
    dense_seconds: float | None
    """Time in dense calls; None if not asked for."""


class AsDict:
    """Statistics of a `summary` and `records`, both of dataclasses."""

    summary: Any
    records: tuple[Any, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, ready for `json.dumps`."""
        return {"summary": asdict(self.summary), "records": [asdict(record) for record in self.records]}


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def mean_over_work(records: Iterable[Any], field: str) -> float | None:
    """Mean of a field of records, weighed by their `work`; None without any."""
    pairs = [(record.work, getattr(record, field)) for record in records]
    total = sum(work for work, _ in pairs)
    return sum(work * value for work, value in pairs) / total if total else None


def calls_by(records: Iterable[Any], field: str) -> dict[str, int]:
    """Number of calls by a field of their records, where that is not None."""
    calls: Counter[str] = Counter()
    for record in records:
        if (value := getattr(record, field)) is not None:
            calls[value] += record.calls
    return dict(calls)
