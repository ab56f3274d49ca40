"""Keys and values at every resolution."""

from psa_triton.pyramid.layout import (
    UNIT_LEVELS,
    UNITS_PER_BLOCK,
    PyramidLayout,
    RowTables,
    pyramid_layout,
    row_tables,
    write_pyramid,
)

__all__ = [
    "UNITS_PER_BLOCK",
    "UNIT_LEVELS",
    "PyramidLayout",
    "RowTables",
    "pyramid_layout",
    "row_tables",
    "write_pyramid",
]
