"""What a model's attentions did: records per layer and kind of call, and their summary."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from psa_triton.config import PSAConfig
from psa_triton.importance import estimation_cost
from psa_triton.integrations.totals import Total, Totals, mean_over_work
from psa_triton.integrations.transformers.call import AttentionCall

DECODE = "decode"
"""Why a call with a single query runs dense."""


@dataclass(frozen=True)
class AttentionRecord:
    """The calls of one layer that had the same sizes and went the same way."""

    part: str
    """`text`, or `other` for the layers of a vision tower and the like."""
    layer: int
    """Index of the layer in its part."""
    queries: int
    """Tokens of the call."""
    keys: int | None
    """Tokens that they see, those in the cache included; None for decode steps: each has more than the last."""
    sparse: bool
    """Whether PSA ran."""
    reason: str | None
    """Why the calls ran dense; None for sparse ones."""
    calls: int
    """Number of calls."""
    work: int
    """Pairs of a query and a key that it sees, over all calls and one head."""
    density: float
    """Groups read / keys visible, mean over calls, batch and heads; 1 for dense calls."""
    density_with_estimation: float
    """`density` plus the estimator's multiply-adds as a share of dense attention's."""
    seconds: float | None
    """Wall-clock time of all calls, without projections; None if not asked for."""


@dataclass(frozen=True)
class AttentionSummary:
    """Totals over all records. Means weigh a call by the work of dense attention."""

    sparse_calls: int
    """Attention calls that ran PSA."""
    dense_calls: int
    """Attention calls that ran dense."""
    dense_reasons: dict[str, int]
    """Number of dense calls by reason."""
    sparse_density: float | None
    """Mean density of the sparse calls; None without any."""
    sparse_density_with_estimation: float | None
    """The same with the cost of estimating importance."""
    prefill_density: float | None
    """Mean density of the text layers' calls but for decode steps; None without any."""
    prefill_density_with_estimation: float | None
    """The same with the cost of estimating importance."""
    run_density: float | None
    """Mean density of all calls, dense ones at 1; None before the first call."""
    run_density_with_estimation: float | None
    """The same with the cost of estimating importance."""
    sparse_seconds: float | None
    """Time in sparse calls; None if not asked for."""
    dense_seconds: float | None
    """Time in dense calls; None if not asked for."""


@dataclass(frozen=True)
class PSAStats:
    """A snapshot of what a model's attentions did."""

    summary: AttentionSummary
    records: tuple[AttentionRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, ready for `json.dumps`."""
        return {"summary": asdict(self.summary), "records": [asdict(record) for record in self.records]}


class CallKey(NamedTuple):
    """What tells the calls of one record from those of another."""

    part: str
    layer: int
    queries: int
    keys: int | None
    reason: str | None
    estimation_cost: float


class Recorder:
    """Adds up the calls of one model. Threads may record at the same time; a copy starts from nothing.

    Args:
        timed: whether calls come with their seconds.
    """

    def __init__(self, timed: bool) -> None:
        self.timed = timed
        self._totals: Totals[CallKey] = Totals()

    def reset(self) -> None:
        """Forget everything."""
        self._totals.reset()

    def add(
        self,
        part: str,
        layer: int,
        call: AttentionCall,
        reason: str | None,
        config: PSAConfig | None,
        density: torch.Tensor | float,
        seconds: float,
    ) -> None:
        """Add one attention call.

        Args:
            part: of the model.
            layer: index in the part.
            call: what was attended to.
            reason: why it ran dense; None if it ran sparse.
            config: of a sparse call.
            density: a scalar.
            seconds: that it took; 0 if not timed.
        """
        cost = 0.0 if reason is not None or config is None else _cost(config)
        key = CallKey(part, layer, call.queries, None if reason == DECODE else call.keys, reason, cost)
        self._totals.add(key, call.work, density, seconds)

    def stats(self) -> PSAStats:
        """A snapshot; waits for the device."""
        records = tuple(self._record(key, total) for key, total in self._totals.snapshot()[0].items())
        return PSAStats(self._summary(records), records)

    def _record(self, key: CallKey, total: Total) -> AttentionRecord:
        density = total.mean_density
        return AttentionRecord(
            part=key.part,
            layer=key.layer,
            queries=key.queries,
            keys=key.keys,
            sparse=key.reason is None,
            reason=key.reason,
            calls=total.calls,
            work=total.work,
            density=density,
            density_with_estimation=density + key.estimation_cost,
            seconds=total.seconds if self.timed else None,
        )

    def _summary(self, records: Collection[AttentionRecord]) -> AttentionSummary:
        sparse = [record for record in records if record.sparse]
        dense = [record for record in records if not record.sparse]
        prefill = [record for record in records if record.part == "text" and record.reason != DECODE]
        reasons: dict[str, int] = {}
        for record in dense:
            reasons[str(record.reason)] = reasons.get(str(record.reason), 0) + record.calls
        return AttentionSummary(
            sparse_calls=sum(record.calls for record in sparse),
            dense_calls=sum(record.calls for record in dense),
            dense_reasons=reasons,
            sparse_density=mean_over_work(sparse, "density"),
            sparse_density_with_estimation=mean_over_work(sparse, "density_with_estimation"),
            prefill_density=mean_over_work(prefill, "density"),
            prefill_density_with_estimation=mean_over_work(prefill, "density_with_estimation"),
            run_density=mean_over_work(records, "density"),
            run_density_with_estimation=mean_over_work(records, "density_with_estimation"),
            sparse_seconds=self._seconds(sparse),
            dense_seconds=self._seconds(dense),
        )

    def _seconds(self, records: Iterable[AttentionRecord]) -> float | None:
        return sum((record.seconds or 0.0 for record in records), 0.0) if self.timed else None


def _cost(config: PSAConfig) -> float:
    return estimation_cost(config.importance, config.block_m, config.block_n)
