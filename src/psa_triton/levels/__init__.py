"""Levels: at which resolution each query block reads each key block."""

from __future__ import annotations

from .densities import density, read_density
from .exemptions import exempt_levels
from .selection import select_levels
from .similarity import cap_levels, similarity_caps

__all__ = ["cap_levels", "density", "exempt_levels", "read_density", "select_levels", "similarity_caps"]
