"""What a query block reads, put back where its keys stand in the frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psa_triton.tools.inspection.exact import spread_evenly
from psa_triton.tools.inspection.inspect import HeadInspection, Inspection


@dataclass(frozen=True)
class FrameMap:
    """One query block over the frames.

    Attributes:
        block: its index.
        frames: frames worth showing, the block's own among them.
        levels: at which each visual token is read, int8 `[t, h, w]`.
        queries: which tokens are its queries, bool `[t, h, w]`.
    """

    block: int
    frames: tuple[int, ...]
    levels: Tensor
    queries: Tensor


def frame_map(inspection: Inspection, head: HeadInspection, block: int, *, frames: int) -> FrameMap:
    """The map of a query block, with up to `frames` frames to show.

    Raises:
        ValueError: the tokens have no place in frames.
    """
    if inspection.grid is None:
        raise ValueError("inspection: expected one of visual tokens, got one without a grid")
    config, prefix = inspection.config, inspection.prefix_tokens
    levels = torch.empty(len(head.key_places), dtype=torch.int8)
    levels[head.key_places] = head.levels[block].repeat_interleave(config.block_n)[: len(levels)]
    queries = torch.zeros(len(head.query_places), dtype=torch.bool)
    queries[head.query_places[block * config.block_m : (block + 1) * config.block_m]] = True
    levels, queries = levels[prefix:].view(inspection.grid), queries[prefix:].view(inspection.grid)
    own = int(queries.sum((1, 2)).argmax())
    return FrameMap(block, _frames_with(own, inspection.grid[0], frames), levels, queries)


def _frames_with(own: int, count: int, wanted: int) -> tuple[int, ...]:
    """Frames spread evenly, the one nearest to `own` moved onto it."""
    frames = list(spread_evenly(count, wanted))
    nearest = min(range(len(frames)), key=lambda place: abs(frames[place] - own))
    frames[nearest] = own
    return tuple(frames)
