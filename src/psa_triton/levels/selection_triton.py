"""Selection on a GPU: one program sorts a row's importance, finds where levels end, and gives each block its level.

Values alone are sorted, 32 bits each, and a level ends at a value. Blocks that are as important as that one are told
apart by their position, which is looked at only where there are such blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.gpu import Launch, warp_size, warps_of_row
from psa_triton.levels.selection import MASS_BITS, Shares

LONGEST_ROW = 4096
"""Blocks of the longest row that sorts in registers."""
_SHORTEST_ROW = 64
_NONE = tl.constexpr(-0x80000000)
"""Less than any importance."""


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
    bits = max(blocks - 1, _SHORTEST_ROW - 1).bit_length()
    warps = warps_of_row(1 << bits)
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
        dict(LEVELS=shares.levels, BY_MASS=shares.by_mass, MASS_BITS=MASS_BITS, BITS=bits, THREADS=warp_size() * warps),
        warps=warps,
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
    BITS: tl.constexpr,
    THREADS: tl.constexpr,
):
    WIDTH: tl.constexpr = 1 << BITS
    OF_THREAD: tl.constexpr = WIDTH // THREADS
    row = tl.program_id(0).to(tl.int64) * blocks
    # Neighbours stand in different threads, which loads like; sorting takes any order, and leaves them in one thread.
    block = tl.arange(0, OF_THREAD)[:, None] * THREADS + tl.arange(0, THREADS)[None, :]
    rank = tl.arange(0, OF_THREAD)[:, None] + tl.arange(0, THREADS)[None, :] * OF_THREAD
    # The float's bits, as integers that are ordered like the floats.
    bits = tl.load(importance + row + block, mask=block < blocks, other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
    bits = tl.where((bits & 0x7FFFFFFF) == 0, 0, bits)  # -0 ties with 0
    key = tl.where(block < blocks, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), _NONE)
    ordered = tl.trans(tl.reshape(_sort(tl.reshape(tl.trans(key), (WIDTH,)), BITS, OF_THREAD), (THREADS, OF_THREAD)))

    before = rank
    if BY_MASS:
        value = tl.maximum(ordered, 0).to(tl.float32, bitcast=True)
        mass = _round(value * (1 << MASS_BITS)).to(tl.int64)
        of_thread = tl.sum(mass, axis=0)
        before = tl.cumsum(mass, axis=0) - mass + (tl.cumsum(of_thread, axis=0) - of_thread)[None, :]
    if of_items is not None:
        of_items += (tl.program_id(0) // rows_per_item).to(tl.int64) * len(LEVELS)
    cuts: tl.tuple = ()
    tie = tl.full((), _NONE, tl.int32)
    for s in tl.static_range(len(LEVELS)):  # the last end is that of blocks that are read in full, by their number
        end = (ends[s] - 3) >> 1 if of_items is None else tl.load(of_items + s)
        cut = _cut(ordered, before if s < len(LEVELS) - 1 else rank, end)
        cuts += (cut,)
        tie = tl.maximum(tie, tl.where(cut[1] > 0, cut[0], _NONE))

    place = tl.zeros((OF_THREAD, THREADS), tl.int32)  # among blocks that are as important, where it matters
    while tie > _NONE:
        is_tie = key == tie
        count = tl.cumsum(tl.reshape(is_tie.to(tl.int32), (WIDTH,)), axis=0)
        place = tl.where(is_tie, tl.reshape(count, (OF_THREAD, THREADS)) - 1, place)
        previous = tie
        tie = tl.full((), _NONE, tl.int32)
        for s in tl.static_range(len(LEVELS)):
            is_next = (cuts[s][1] > 0) & (cuts[s][0] < previous)
            tie = tl.maximum(tie, tl.where(is_next, cuts[s][0], _NONE))
    level = tl.full((OF_THREAD, THREADS), LEVELS[0], tl.int32)
    for s in tl.static_range(len(LEVELS)):
        first, equal = cuts[s]
        is_before = (key > first) | ((key == first) & (place < equal))
        level = tl.where(is_before, level, LEVELS[s + 1]) if s < len(LEVELS) - 1 else tl.where(is_before, 1, level)
    tl.store(levels + row + block, level.to(tl.int8), mask=block < blocks)


@triton.jit
def _cut(ordered, before, end):
    """Where a level ends: the largest of `ordered` that `end` lies before, and how many as large it does not."""
    first = tl.max(tl.where(before >= end, ordered, _NONE))
    return first, tl.sum(((before < end) & (ordered == first)).to(tl.int32))


@triton.jit
def _sort(x, BITS: tl.constexpr, OF_THREAD: tl.constexpr):
    """`x`, `2 ** BITS` numbers, in descending order, by a bitonic network; `OF_THREAD` neighbours stand in one thread.

    `tl.sort` knows nothing of threads: it takes twice the instructions.
    """
    x = tl.reshape(x, [2] * BITS)
    for run in tl.static_range(1, BITS + 1):
        # Every other run of this length is sorted the other way, as its complement.
        if run < BITS:
            x ^= -_bit(run, BITS)
        for stage in tl.static_range(run):
            x = _exchange(x, run - 1 - stage, BITS, OF_THREAD)
        if run < BITS:
            x ^= -_bit(run, BITS)
    return tl.reshape(x, [1 << BITS])


@triton.jit
def _exchange(x, i: tl.constexpr, BITS: tl.constexpr, OF_THREAD: tl.constexpr):
    """The larger of each pair first, where pairs differ in bit `i` of their place."""
    other = x ^ tl.xor_sum(x, BITS - 1 - i, keep_dims=True)
    is_second = _bit(i, BITS) != 0
    if (1 << i) < OF_THREAD:
        return tl.where(is_second, tl.minimum(x, other), tl.maximum(x, other))
    else:
        return tl.where((x < other) != is_second, other, x)


@triton.jit
def _bit(i: tl.constexpr, BITS: tl.constexpr):
    """Bit `i` of the place of each of `2 ** BITS` numbers in a cube of sides of 2."""
    return tl.reshape(tl.arange(0, 2), [1] * (BITS - 1 - i) + [2] + [1] * i)


@triton.jit
def _round(x):
    """Nearest integer of a float32 of at least 0, halves to even, as torch rounds: the unit of 2^23 to 2^24 is 1."""
    return tl.where(x < 8388608.0, (x + 8388608.0) - 8388608.0, x)
