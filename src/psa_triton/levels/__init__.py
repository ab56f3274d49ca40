"""Levels: at which resolution each query block reads each key block."""

from __future__ import annotations

from psa_triton.levels.choice import choose_levels, coarsest_level, levels_of
from psa_triton.levels.densities import density, read_density
from psa_triton.levels.exemptions import exempt_levels
from psa_triton.levels.selection import select_levels
from psa_triton.levels.similarity import cap_levels, similarity_caps

__all__ = [
    "cap_levels",
    "choose_levels",
    "coarsest_level",
    "density",
    "exempt_levels",
    "levels_of",
    "read_density",
    "select_levels",
    "similarity_caps",
]
