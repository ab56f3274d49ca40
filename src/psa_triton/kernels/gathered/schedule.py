"""Levels -> the lists of pyramid rows that query blocks read, and query blocks of like lists stacked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

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

    @cached_property
    def starts(self) -> list[int]:
        """`start` as Python has it: threads that work through blocks one by one would wait for a tensor each."""
        return self.start.tolist()

    def steps_of(self, block: int) -> int:
        """How many the list of a query block has."""
        return self.starts[block + 1] - self.starts[block]


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


def stacked(schedule: Schedule, blocks: Sequence[int], rows: int) -> list[list[int]]:
    """Put query blocks with lists of like lengths together, the longest first. Those that read nothing are left out.

    Args:
        schedule: of R query blocks.
        blocks: which of them to stack.
        rows: of the pyramid in a stack, all lists together; a list that is longer stands alone.

    Returns:
        The blocks of each stack, the one with the longest list first.
    """
    order = sorted(filter(schedule.steps_of, blocks), key=schedule.steps_of, reverse=True)
    stacks, position = [], 0
    while position < len(order):
        end = position + max(1, rows // (schedule.steps_of(order[position]) * schedule.size))
        stacks.append(order[position:end])
        position = end
    return stacks


def lists(schedule: Schedule, blocks: Sequence[int], nothing: int) -> torch.Tensor:
    """The lists of the `blocks` of a stack, int64 `[G, S]`, of steps; of one block `[S]`, a view.

    They are filled up at their beginning with the step `nothing`, so that what a causal mask cuts stands at the end of
    all of them.
    """
    if len(blocks) == 1:
        return schedule.steps[schedule.starts[blocks[0]] : schedule.starts[blocks[0] + 1]]
    device = schedule.steps.device
    chosen = torch.tensor(blocks, device=device)[:, None]
    place = torch.arange(-schedule.steps_of(blocks[0]), 0, device=device) + schedule.start[chosen + 1]
    return schedule.steps[place.clamp(min=0)].masked_fill(place < schedule.start[chosen], nothing)
