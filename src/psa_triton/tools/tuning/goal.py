"""What a user asks for: a cost, a speed-up, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psa_triton.tools.tuning.allocation import Allocation, Cell, within_cost, within_error
from psa_triton.tools.tuning.curve import BUDGETS


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One wish; the other two are None.

    Raises:
        ValueError: none or several, or one out of range.
    """

    budget: float | None = None
    """Mean density of the steps after the warm-up, the estimate of importance included."""
    speedup: float | None = None
    """Work of dense attention over that of the whole run, its warm-up included."""
    error: float | None = None
    """Root mean square of the relative L2 errors of layers and steps after the warm-up."""

    def __post_init__(self) -> None:
        wishes = {"budget": self.budget, "target_speedup": self.speedup, "target_error": self.error}
        given = [name for name, value in wishes.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of budget, target_speedup, target_error, got {' and '.join(given) or 'none'}"
            )
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError(f"budget: expected more than 0 and at most 1, got {self.budget}")
        if self.speedup is not None and not self.speedup >= 1:
            raise ValueError(f"target_speedup: expected 1 or more, got {self.speedup}")
        if self.error is not None and not self.error >= 0:
            raise ValueError(f"target_error: expected 0 or more, got {self.error}")

    def check(self, *, steps: int, warmup: int) -> None:
        """Check against a run of `steps`, the first `warmup` of them dense.

        Raises:
            ValueError: it asks for less than the least budget that is tried.
        """
        least = BUDGETS[0]
        if self.budget is not None and self.budget < least:
            raise ValueError(f"budget: expected {least} or more, got {self.budget:g}")
        fastest = steps / (warmup + least * (steps - warmup))
        if self.speedup is not None and self.speedup > fastest:
            raise ValueError(
                f"target_speedup: expected {fastest:.2f} or less, which a budget of {least} gives with {warmup} of "
                f"{steps} steps dense, got {self.speedup:g}; fewer warmup_steps allow more"
            )

    def reach(self, cells: Sequence[Cell], *, steps: int, warmup: int) -> Allocation:
        """The best allocation that meets it.

        Raises:
            ValueError: blocks that are always read make even the least budgets dearer.
        """
        if self.error is not None:
            return within_error(cells, self.error)
        if self.budget is not None:
            return within_cost(cells, self.budget)
        assert self.speedup is not None
        return within_cost(cells, (steps / self.speedup - warmup) / (steps - warmup))
