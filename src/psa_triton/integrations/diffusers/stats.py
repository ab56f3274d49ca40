"""What attached attentions did: records per layer and step, and their summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch

from psa_triton.config import PSAConfig
from psa_triton.integrations.totals import Total, Totals, mean_over_work
from psa_triton.ordering import TokenOrder


@dataclass(frozen=True)
class LevelRecord:
    """What one sparse call read, as `apply_psa` tells its `on_levels`."""

    transformer: str
    """`transformer` or `transformer_2`."""
    layer: int
    """Index of the transformer block."""
    step: int | None
    """Index of the denoising step; None where no scheduler is known."""
    config: PSAConfig
    """How the levels were chosen; its blocks cut the sequence."""
    levels: torch.Tensor
    """int8 `[B, H, nq, nk]`, on the model's device: to be copied by who keeps it."""
    densities: torch.Tensor
    """float32 `[B, H]`: groups read / keys visible."""
    grid: tuple[int, int, int]
    """Visual tokens as (frames, height, width)."""
    prefix_tokens: int
    """Text tokens before them."""
    order: TokenOrder | None
    """Of the visual tokens, on the CPU; None: they stand as they come, or by clusters that each layer finds anew."""


@dataclass(frozen=True)
class AttentionRecord:
    """The calls of one layer in one denoising step that went the same way."""

    transformer: str
    """`transformer` or `transformer_2`."""
    layer: int
    """Index of the transformer block."""
    step: int | None
    """Index of the denoising step in the scheduler's timesteps; None where no scheduler is known."""
    tokens: int
    """Length of the attended sequence, text included."""
    sparse: bool
    """Whether PSA ran; False: the model's own attention ran."""
    reason: str | None
    """Why the calls ran dense; None for sparse ones."""
    calls: int
    """Number of calls (two per step where guidance runs the model twice)."""
    density: float
    """Groups read / keys visible, mean over calls, batch and heads; 1 for dense calls."""
    density_with_estimation: float
    """`density` plus the estimator's multiply-adds as a share of dense attention's."""
    seconds: float | None
    """Wall-clock time of all calls, projections included; None if not asked for."""

    @property
    def work(self) -> int:
        """Pairs of a query and a key, over all calls and one head."""
        return self.calls * self.tokens**2


@dataclass(frozen=True)
class AttentionSummary:
    """Totals over all records. Means weigh a call by its tokens squared, i.e. by the work of dense attention."""

    forwards: int
    """Transformer forwards."""
    gathers: int
    """Tensors that the hooks permuted or restored."""
    sparse_calls: int
    """Attention calls that ran PSA."""
    dense_calls: int
    """Attention calls that ran the model's own attention."""
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


@dataclass(frozen=True)
class PSAStats:
    """A snapshot of what an attached pipeline or transformer did."""

    summary: AttentionSummary
    records: tuple[AttentionRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, ready for `json.dumps`."""
        return {"summary": asdict(self.summary), "records": [asdict(record) for record in self.records]}


class CallKey(NamedTuple):
    """What tells the calls of one record from those of another."""

    transformer: str
    layer: int
    step: int | None
    tokens: int
    reason: str | None


class Recorder:
    """Adds up calls per `CallKey`, so that memory is bounded by layers x steps however long a run is.

    Densities stay tensors on their device until `stats` is called: recording never waits for the device. Threads may
    record at the same time; a copy starts from nothing.

    Args:
        estimation_cost: multiply-adds of the importance estimator as a share of dense attention's.
        timed: whether calls come with their seconds.
    """

    def __init__(self, estimation_cost: float, timed: bool) -> None:
        self.timed = timed
        self._estimation_cost = estimation_cost
        self._totals: Totals[CallKey] = Totals()

    def reset(self) -> None:
        """Forget everything."""
        self._totals.reset()

    def count(self, event: Literal["forwards", "gathers"]) -> None:
        """Count a transformer forward, or a tensor that a hook permuted or restored."""
        self._totals.count(event)

    def add(self, key: CallKey, density: torch.Tensor | float, seconds: float) -> None:
        """Add one attention call; `density` is a scalar."""
        self._totals.add(key, key.tokens**2, density, seconds)

    def stats(self) -> PSAStats:
        """A snapshot; waits for the device."""
        totals, events = self._totals.snapshot()
        records = tuple(self._record(key, total) for key, total in totals.items())
        return PSAStats(self._summary(records, events), records)

    def _record(self, key: CallKey, total: Total) -> AttentionRecord:
        sparse = key.reason is None
        density = total.mean_density
        return AttentionRecord(
            **key._asdict(),
            sparse=sparse,
            calls=total.calls,
            density=density,
            density_with_estimation=density + self._estimation_cost if sparse else density,
            seconds=total.seconds if self.timed else None,
        )

    def _summary(self, records: tuple[AttentionRecord, ...], events: Counter[str]) -> AttentionSummary:
        sparse = [record for record in records if record.sparse]
        dense = [record for record in records if not record.sparse]
        return AttentionSummary(
            forwards=events["forwards"],
            gathers=events["gathers"],
            sparse_calls=sum(record.calls for record in sparse),
            dense_calls=sum(record.calls for record in dense),
            sparse_density=mean_over_work(sparse, "density"),
            sparse_density_with_estimation=mean_over_work(sparse, "density_with_estimation"),
            run_density=mean_over_work(records, "density"),
            run_density_with_estimation=mean_over_work(records, "density_with_estimation"),
            sparse_seconds=self._seconds(sparse),
            dense_seconds=self._seconds(dense),
        )

    def _seconds(self, records: Iterable[AttentionRecord]) -> float | None:
        return sum((record.seconds or 0.0 for record in records), 0.0) if self.timed else None
