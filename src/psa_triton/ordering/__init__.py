"""Token orders that put alike tokens side by side, so that blocks of them can be pooled or skipped."""

from __future__ import annotations

from psa_triton.ordering.order import TokenOrder, grid_order
from psa_triton.ordering.semantic import semantic_order

__all__ = ["TokenOrder", "grid_order", "semantic_order"]
