"""One budget for many rows: what each may spend if all pay up to the same threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from torch import Tensor

from psa_triton.levels.budget.allocation import least_threshold

Scope = Literal["row", "head", "layer"]

_SHARING: Final = {"head": (-1,), "layer": (-2, -1)}
"""Dimensions of `[B, Hq, nq]` that share a budget."""


def share_limits(limits: Tensor, costs: Tensor, scope: Scope, prices_above: Callable[[Tensor], Tensor]) -> Tensor:
    """Limits that together cost as much, given to the rows that gain most.

    Args:
        limits: int32 `[B, Hq, nq]`, groups that each row may read by itself.
        costs: float64 `[nq]`, what a group read by a row counts.
        scope: `row` leaves the limits as they are; `head` and `layer` share them among these rows.
        prices_above: float32 thresholds `[B, Hq, nq]` -> int32, the groups that each row reads at its threshold.

    Returns:
        int32 `[B, Hq, nq]`.
    """
    if scope == "row":
        return limits
    shared = _SHARING[scope]
    allowed = (limits * costs).sum(shared, keepdim=True)

    def fits(threshold: Tensor) -> Tensor:
        return (prices_above(threshold.expand(limits.shape)) * costs).sum(shared, keepdim=True) <= allowed

    return prices_above(least_threshold(fits, allowed).expand(limits.shape))
