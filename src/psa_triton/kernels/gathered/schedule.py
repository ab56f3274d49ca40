"""Levels -> the lists of pyramid rows that query blocks read, and query blocks of like lists stacked together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F

from psa_triton.pyramid import UNITS_PER_BLOCK, PyramidLayout


@dataclass(frozen=True)
class Schedule:
    """What each of R query blocks reads, in steps of so many consecutive rows, in the order of the key blocks."""

    steps: torch.Tensor
    """int64, the lists one after another: step `s` is the rows `s * size` to `(s + 1) * size - 1` of the pyramid."""
    start: torch.Tensor
    """int64 `[R + 1]`, where each list begins."""
    size: int
    """Rows of a step: those of the coarsest level's block, so that every level is whole steps."""


def step_size(layout: PyramidLayout) -> int:
    """Rows of a step: a unit, or what a block has at the coarsest level if that is less."""
    return layout.block_n // max(UNITS_PER_BLOCK, layout.levels[-1])


def make_schedule(
    levels: torch.Tensor, layout: PyramidLayout, kept: torch.Tensor | None = None, stride: int = 0
) -> Schedule:
    """The lists of query blocks.

    Args:
        levels: int8 `[H, R / H, nk]`: what is read of each of H key heads; nothing at what is no level of `layout`.
        layout: of the pyramids that the lists index. Steps without a token, behind the end of the sequence or left out
            by a key mask, are not listed.
        kept: int64 `[P]`, tokens of each row where a key mask leaves some out; None if it leaves out none.
        stride: steps from the pyramid of one key head to that of the next.
    """
    size, device = step_size(layout), levels.device
    per_block, in_last, first = _step_tables(layout, device)
    chosen = levels.to(torch.uint8).long()  # what is below 0 comes behind all levels
    counts = per_block[chosen]
    begin = first[chosen] + torch.arange(layout.blocks, device=device) * counts
    begin += torch.arange(len(levels), device=device)[:, None, None] * stride
    counts[..., -1] = in_last[chosen[..., -1]]
    each = counts.flatten()
    until = each.cumsum(0)
    start = F.pad(until[layout.blocks - 1 :: layout.blocks], (1, 0))
    count = int(start[-1])
    steps = torch.arange(count, device=device)
    steps += (begin.flatten() - (until - each)).repeat_interleave(each, output_size=count)
    if kept is not None:
        is_listed = (kept.view(-1, size) > 0).any(-1)[steps % stride if stride else steps]
        steps, start = steps[is_listed], F.pad(is_listed.cumsum(0), (1, 0))[start]
    return Schedule(steps, start, size)


@lru_cache(maxsize=32)
def _step_tables(layout: PyramidLayout, device: torch.device) -> torch.Tensor:
    """int64 `[3, 256]`: by level, steps of a block, of the last block, and the first step; 0 for what is no level."""
    size = step_size(layout)
    tail = layout.tokens - (layout.blocks - 1) * layout.block_n
    tables = torch.zeros(3, 256, dtype=torch.int64)
    for level in layout.levels:
        tables[:, level] = torch.tensor(
            [layout.block_n // level // size, -(-tail // (level * size)), layout.first_row(level) // size]
        )
    return tables.to(device)


def stacked(schedule: Schedule, blocks: torch.Tensor, rows: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Put query blocks with lists of like lengths together, the longest first. Those that read nothing are left out.

    Args:
        schedule: of R query blocks.
        blocks: int64, which of them to stack.
        rows: of the pyramid in a stack, all lists together; a list that is longer stands alone.

    Yields:
        The blocks of a stack, int64 `[G]`, and the number of steps of its longest list.
    """
    counts, order = schedule.start.diff()[blocks].sort(descending=True, stable=True)
    lengths, position = counts[counts > 0].tolist(), 0
    while position < len(lengths):
        longest = lengths[position]
        end = min(position + max(1, rows // (longest * schedule.size)), len(lengths))
        yield blocks[order[position:end]], longest
        position = end


def lists(schedule: Schedule, blocks: torch.Tensor, longest: int, nothing: int) -> torch.Tensor:
    """The lists of `blocks`, int64 `[G, longest]`, of steps.

    They are filled up at their beginning with the step `nothing`, so that what a causal mask cuts stands at the end of
    all of them.
    """
    if len(blocks) == 1:  # a view: the calls below are small, and threads wait for each
        first = int(schedule.start[blocks])
        return schedule.steps[first : first + longest][None]
    start, end = schedule.start[blocks, None], schedule.start[blocks + 1, None]
    place = torch.arange(-longest, 0, device=blocks.device) + end
    return schedule.steps[place.clamp(min=0)].masked_fill(place < start, nothing)
