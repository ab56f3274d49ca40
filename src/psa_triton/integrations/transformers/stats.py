"""What a model's attentions did: records per layer and kind of call, and their summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from psa_triton.integrations.stats import AsDict, Snapshot, Summary, calls_by, mean_over_work

DECODE = "decode"
"""Why a call with a single query runs dense."""


@dataclass(frozen=True)
class CallKey:
    """What tells the calls of one record from those of another."""

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


@dataclass(frozen=True)
class AttentionRecord(CallKey):
    """The calls of one layer that had the same sizes and went the same way."""

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


@dataclass(frozen=True, kw_only=True)
class AttentionSummary(Summary):
    """Totals over all records. Means weigh a call by the work of dense attention."""

    dense_reasons: dict[str, int]
    """Number of dense calls by reason."""
    prefill_density: float | None
    """Mean density of the text layers' calls but for decode steps; None without any."""
    prefill_density_with_estimation: float | None
    """The same with the cost of estimating importance."""


@dataclass(frozen=True)
class PSAStats(AsDict):
    """A snapshot of what a model's attentions did."""

    summary: AttentionSummary
    records: tuple[AttentionRecord, ...]

    @classmethod
    def of(cls, counted: Snapshot) -> Self:
        """The statistics of what was counted."""
        records = tuple(
            AttentionRecord(**counted.fields(key), work=total.work) for key, total in counted.totals.items()
        )
        prefill = [record for record in records if record.part == "text" and record.reason != DECODE]
        summary = AttentionSummary(
            **counted.summary(records),
            dense_reasons=calls_by(records, "reason"),
            prefill_density=mean_over_work(prefill, "density"),
            prefill_density_with_estimation=mean_over_work(prefill, "density_with_estimation"),
        )
        return cls(summary, records)
