"""Levels by a budget: what each choice saves, what it costs, and the best of them."""

from __future__ import annotations

from psa_triton.levels.budget.errors import expected_errors
from psa_triton.levels.budget.ladder import ladder
from psa_triton.levels.budget.levels import budget_levels

__all__ = ["budget_levels", "expected_errors", "ladder"]
