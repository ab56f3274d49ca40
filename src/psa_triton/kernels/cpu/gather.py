"""What a query block reads: rows of the flat pyramid gathered into parts, and gradients of parts added back to rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from psa_triton.kernels.cpu.pyramid import Pyramid
from psa_triton.pyramid import PyramidLayout
from psa_triton.schedule import Schedule

ROWS_AT_ONCE = 8192
"""Of a query block's list; longer lists are read in parts, to bound the scratch memory."""


@dataclass(frozen=True)
class Part:
    """A piece of a query block's list: first the rows of whole units, then single coarse rows, L in all."""

    units: torch.Tensor
    """Indices of the units."""
    coarse: torch.Tensor
    """Indices of the single rows."""
    keys: torch.Tensor
    """`[L, D]`, as `values`."""
    values: torch.Tensor
    log_count: torch.Tensor
    """float64 `[L]`."""
    spread: torch.Tensor | None
    """`[L]`, where logits are corrected by it."""
    last_token: torch.Tensor | None
    """int64 `[L]`, where a causal mask asks for it."""


def list_length(schedule: Schedule, layout: PyramidLayout, i: int) -> int:
    """Rows that query block `i` reads."""
    s = schedule
    return (s.unit_start[i + 1] - s.unit_start[i]) * layout.unit + s.row_start[i + 1] - s.row_start[i]


def gather_parts(pyramid: Pyramid, schedule: Schedule, i: int, *, is_causal: bool) -> Iterator[Part]:
    """The list of query block `i`, in parts of at most `ROWS_AT_ONCE` rows of units (or of coarse rows)."""
    s, unit = schedule, pyramid.layout.unit
    units = s.units[s.unit_start[i] : s.unit_start[i + 1]]
    coarse = s.rows[s.row_start[i] : s.row_start[i + 1]]
    if len(units) * unit + len(coarse) <= ROWS_AT_ONCE:
        yield _gather(pyramid, units, coarse, is_causal)
        return
    at_once = ROWS_AT_ONCE // unit
    for start in range(0, len(units), at_once):
        yield _gather(pyramid, units[start : start + at_once], coarse[:0], is_causal)
    for start in range(0, len(coarse), ROWS_AT_ONCE):
        yield _gather(pyramid, units[:0], coarse[start : start + ROWS_AT_ONCE], is_causal)


def _gather(pyramid: Pyramid, units: torch.Tensor, coarse: torch.Tensor, is_causal: bool) -> Part:
    def pick(table: torch.Tensor) -> torch.Tensor:
        in_units = _in_units(table, pyramid.layout.unit)
        picked = in_units.index_select(0, units).view(-1, *table.shape[1:])
        return torch.cat([picked, table.index_select(0, coarse)]) if len(coarse) else picked

    return Part(
        units=units,
        coarse=coarse,
        keys=pick(pyramid.keys),
        values=pick(pyramid.values),
        log_count=pick(pyramid.tables.log_count),
        spread=None if pyramid.spread is None else pick(pyramid.spread),
        last_token=pick(pyramid.tables.last_token) if is_causal else None,
    )


def add_part(rows: torch.Tensor, part: Part, unit: int, gradient: torch.Tensor) -> None:
    """Add the gradient `[L, D]` of a part's keys or values to the gradient `rows [P, D]` of the pyramid."""
    gradient = gradient.to(rows.dtype)
    split = len(part.units) * unit
    in_units = _in_units(rows, unit)
    in_units.index_add_(0, part.units, gradient[:split].view(-1, in_units.shape[1]))
    if len(part.coarse):
        rows.index_add_(0, part.coarse, gradient[split:])


def _in_units(table: torch.Tensor, unit: int) -> torch.Tensor:
    """A view of a table `[P, ...]` with one row a unit."""
    whole = len(table) // unit * unit  # coarse levels may end between two units
    return table[:whole].view(-1, unit * table.shape[1:].numel())
