"""Levels -> the lists of pyramid units and rows that a kernel walks, one list a query block."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psa_triton.pyramid import UNIT_LEVELS, PyramidLayout
from psa_triton.ratios import COARSEST_LEVEL


@dataclass(frozen=True)
class Schedule:
    """For one head: which units and which single rows each query block reads, in the order of their blocks.

    Query block `i` reads `units[unit_start[i] : unit_start[i + 1]]` (indices of units of the flat pyramid) and, where
    levels are coarser than a unit, `rows[row_start[i] : row_start[i + 1]]` (indices of rows).
    """

    units: torch.Tensor
    unit_start: list[int]
    rows: torch.Tensor
    row_start: list[int]


def make_schedule(levels: torch.Tensor, layout: PyramidLayout, kept: torch.Tensor | None = None) -> Schedule:
    """Unit and row lists of one head.

    Args:
        levels: int8 `[nq, nk]`, each 0 or a level of `layout`.
        layout: of the pyramid that the lists index.
        kept: int64 `[P]`, tokens of each row where a key mask leaves some out; None if it leaves out none.
    """
    unit_levels = [level for level in layout.levels if level in UNIT_LEVELS]
    coarse_levels = [level for level in layout.levels if level not in UNIT_LEVELS]
    units = _lists(levels, layout, unit_levels, layout.unit, kept)
    rows = _lists(levels, layout, coarse_levels, 1, kept)
    return Schedule(*units, *rows)


def _lists(
    levels: torch.Tensor, layout: PyramidLayout, wanted: list[int], step: int, kept: torch.Tensor | None
) -> tuple[torch.Tensor, list[int]]:
    """Indices, in steps of `step` rows, of all that blocks at the `wanted` levels hold; and each list's start.

    Steps without a single token, behind the end of the sequence or left out by a key mask, are not listed.
    """
    if not wanted:
        return levels.new_empty(0, dtype=torch.int64), [0] * (len(levels) + 1)
    tail = layout.tokens - (layout.blocks - 1) * layout.block_n
    per_block, in_last, first = torch.zeros(3, COARSEST_LEVEL + 1, dtype=torch.int64)
    for level in wanted:
        per_block[level] = layout.block_n // level // step
        in_last[level] = -(-tail // (level * step))
        first[level] = layout.first_row(level) // step
    chosen = levels.long()
    counts = per_block[chosen]
    begin = (first[chosen] + torch.arange(layout.blocks) * counts).flatten()
    counts[:, -1] = in_last[chosen[:, -1]]
    each = counts.flatten()
    offset = each.cumsum(0) - each
    indices = torch.arange(int(each.sum())) + (begin - offset).repeat_interleave(each)
    ends = counts.sum(1).cumsum(0)
    if kept is not None:
        in_steps = kept[: len(kept) // step * step].view(-1, step)
        is_listed = (in_steps > 0).any(-1)[indices]
        indices = indices[is_listed]
        ends = torch.nn.functional.pad(is_listed.cumsum(0), (1, 0))[ends]
    return indices, [0, *ends.tolist()]
