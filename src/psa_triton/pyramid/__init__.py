"""Keys and values at every resolution."""

from psa_triton.pyramid.layout import (
    UNITS_PER_BLOCK,
    PyramidLayout,
    RowTables,
    kept_row_tables,
    pyramid_layout,
    row_tables,
    write_pyramid,
)
from psa_triton.pyramid.spread import SPREAD_LEVELS, write_spread

__all__ = [
    "SPREAD_LEVELS",
    "UNITS_PER_BLOCK",
    "PyramidLayout",
    "RowTables",
    "kept_row_tables",
    "pyramid_layout",
    "row_tables",
    "write_pyramid",
    "write_spread",
]
