"""Selection on a GPU: one program sorts a row of blocks by importance, and gives each its level."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.gpu import Launch
from psa_triton.levels.selection import MASS_BITS, Shares

LONGEST_ROW = 4096
"""Blocks of the longest row that sorts in registers."""
_SHORTEST_ROW = 16


def assign_levels(importance: Tensor, shares: Shares) -> Tensor:
    """What `selection.assign_levels` computes, bit for bit.

    Args:
        importance: float32, bfloat16 or float16 `[..., nq, nk]`, no NaN, `nk` at most `LONGEST_ROW`.
        shares: which part of the order goes to which level.

    Returns:
        int8, shape of `importance`.
    """
    importance = importance.contiguous()
    levels = torch.empty_like(importance, dtype=torch.int8)
    blocks = importance.shape[-1]
    rows = importance.numel() // blocks
    width = max(triton.next_power_of_2(blocks), _SHORTEST_ROW)
    numbers = [*shares.ends, shares.full]
    of_items, items = None, 1
    if any(isinstance(x, Tensor) for x in numbers):  # shares of different numbers of blocks
        items = len(importance)
        like = torch.empty(items, dtype=torch.int64, device=importance.device)
        columns = [x.reshape(-1) if isinstance(x, Tensor) else torch.full_like(like, x) for x in numbers]
        of_items, numbers = torch.stack(columns, dim=-1), [0] * len(numbers)
    Launch(
        _assign_levels_kernel,
        (rows,),
        dict(
            importance=importance,
            levels=levels,
            # Odd numbers: Triton compiles anew for 1 and for multiples of 16, and ends follow from the length.
            ends=tuple(2 * number + 3 for number in numbers),
            of_items=of_items,
            rows_per_item=rows // items,
            blocks=blocks,
        ),
        dict(LEVELS=shares.levels, BY_MASS=shares.by_mass, MASS_BITS=MASS_BITS, WIDTH=width),
        warps=8 if width > 2048 else 4,
    ).run()
    return levels


@triton.jit(do_not_specialize=["rows_per_item"])
def _assign_levels_kernel(
    importance,
    levels,
    ends,
    of_items,
    rows_per_item,
    blocks,
    LEVELS: tl.constexpr,
    BY_MASS: tl.constexpr,
    MASS_BITS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * blocks
    rank = tl.arange(0, WIDTH)
    x = tl.load(importance + row + rank, mask=rank < blocks, other=0.0).to(tl.float32)

    # High word: the float's bits, as integers that are ordered like the floats. Low word: earlier blocks are larger.
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where((bits & 0x7FFFFFFF) == 0, 0, bits)  # -0 ties with 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (ordered.to(tl.int64) << 32) | (WIDTH - 1 - rank)
    key = tl.sort(tl.where(rank < blocks, key, -0x8000000000000000), descending=True)
    block = WIDTH - 1 - (key & 0xFFFFFFFF).to(tl.int32)

    if BY_MASS:
        ordered = tl.where(rank < blocks, key >> 32, 0).to(tl.int32)
        bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
        mass = _round(bits.to(tl.float32, bitcast=True) * (1 << MASS_BITS)).to(tl.int64)
        reached = tl.cumsum(mass, axis=0) - mass
    else:
        reached = rank.to(tl.int64)
    level = tl.full((WIDTH,), LEVELS[0], tl.int32)
    if of_items is not None:
        of_items += (tl.program_id(0) // rows_per_item).to(tl.int64) * len(LEVELS)
    for s in tl.static_range(len(LEVELS)):
        end = (ends[s] - 3) >> 1 if of_items is None else tl.load(of_items + s)
        if s < len(LEVELS) - 1:
            level = tl.where(reached >= end, LEVELS[s + 1], level)
        else:  # the last number is that of blocks that are read in full whatever comes before them
            level = tl.where(rank < end, 1, level)
    tl.store(levels + row + block, level.to(tl.int8), mask=rank < blocks)


@triton.jit
def _round(x):
    """Nearest integer of a float32 of at least 0, halves to even, as torch rounds: the unit of 2^23 to 2^24 is 1."""
    return tl.where(x < 8388608.0, (x + 8388608.0) - 8388608.0, x)
