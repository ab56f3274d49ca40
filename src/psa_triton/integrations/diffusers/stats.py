"""What attached attentions did: records per layer and step, and their summary."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Self

import torch

from psa_triton.config import PSAConfig, Way
from psa_triton.integrations.stats import AsDict, Snapshot, Summary, calls_by
from psa_triton.ordering import TokenOrder


@dataclass(frozen=True)
class LevelRecord:
    """What one sparse call read, as `apply_psa` tells its `on_levels`."""

    transformer: str
    """`transformer` or `transformer_2`."""
    layer: int
    """Index of the attention layer."""
    step: int | None
    """Index of the denoising step; None where no scheduler is known."""
    config: PSAConfig
    """How the levels were chosen; its blocks cut the sequence."""
    levels: torch.Tensor
    """int8 `[B, H, nq, nk]`, on the model's device: to be copied by who keeps it."""
    densities: torch.Tensor
    """float32 `[B, H]`: groups read / keys visible."""
    grid: tuple[int, int, int]
    """Visual tokens as (frames, height, width); (1, 1, V) where they are of several grids."""
    prefix_tokens: int
    """Other tokens, of text say, which the operator gets first."""
    order: TokenOrder | None
    """Of the visual tokens, on the CPU; None: they stand as they come, or by clusters that each layer finds anew."""
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    """q, k, v of the call, `[B, H, N, D]`, in that order: to be copied by who keeps them."""


@dataclass(frozen=True)
class CallKey:
    """What tells the calls of one record from those of another."""

    transformer: str
    """`transformer` or `transformer_2`."""
    layer: int
    """Index of the attention layer."""
    step: int | None
    """Index of the denoising step in the scheduler's timesteps; None where no scheduler is known."""
    tokens: int
    """Length of the attended sequence, text and padding included."""
    sparse: bool
    """Whether PSA ran; False: the model's own attention ran."""
    way: Way | None
    """What PSA did: `sparse`, or with `reuse` a `refresh` or `broadcast`; None where it did not run."""
    reason: str | None
    """Why the calls ran dense; None for sparse ones."""


@dataclass(frozen=True)
class AttentionRecord(CallKey):
    """The calls of one layer in one denoising step that went the same way."""

    calls: int
    """Number of calls (two per step where guidance runs the model twice)."""
    density: float
    """Groups read / keys visible, mean over calls, batch and heads; 1 for dense calls, 1 more in a refresh."""
    density_with_estimation: float
    """`density` plus the multiply-adds of estimator and probe as a share of dense attention's."""
    seconds: float | None
    """Wall-clock time of all calls, projections included; None if not asked for."""
    measured_error: float | None
    """Relative error of the output at the probed rows, mean over calls and batch; None if none was measured."""
    measured_error_standard_error: float | None
    """How far the error of all rows may be from it."""

    @property
    def work(self) -> int:
        """Pairs of a query and a key, over all calls and one head."""
        return self.calls * self.tokens**2


@dataclass(frozen=True, kw_only=True)
class AttentionSummary(Summary):
    """Totals over all records. Means weigh a call by its tokens squared, i.e. by the work of dense attention."""

    forwards: int
    """Transformer forwards."""
    gathers: int
    """Tensors that were put in the order of the operator, or back."""
    ways: dict[str, int]
    """Calls of PSA by their way."""
    measured_error: float | None
    """Mean of the records'; None if none was measured."""
    largest_measured_error: float | None
    """Largest of the records'."""


@dataclass(frozen=True)
class PSAStats(AsDict):
    """A snapshot of what an attached pipeline or transformer did."""

    summary: AttentionSummary
    records: tuple[AttentionRecord, ...]

    @classmethod
    def of(cls, counted: Snapshot) -> Self:
        """The statistics of what was counted."""
        records = tuple(
            AttentionRecord(
                **counted.fields(key),
                measured_error=total.mean_error,
                measured_error_standard_error=total.standard_error,
            )
            for key, total in counted.totals.items()
        )
        errors = [record.measured_error for record in records if record.measured_error is not None]
        summary = AttentionSummary(
            forwards=counted.events["forwards"],
            gathers=counted.events["gathers"],
            **counted.summary(records),
            ways=calls_by(records, "way"),
            measured_error=fmean(errors) if errors else None,
            largest_measured_error=max(errors, default=None),
        )
        return cls(summary, records)
