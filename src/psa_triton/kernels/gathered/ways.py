"""Ways to attend over a stack of gathered rows, and which of them suits a processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from psa_triton.products import has_tiles, multiplies

_LARGE_BLOCK: Final = 1 << 24
"""Multiply-adds of a block's product with its list from which on it is worth a task of its own in Python."""
_CACHE: Final = 8 << 20
"""Bytes of a stack on a CPU, its weights included: few calls, whose operands stay in the cache."""
_CACHE_WITH_TILES: Final = 4 * _CACHE
"""The same where products are so fast that what surrounds a call is dear."""
_LEAST: Final = 4 << 20
"""Bytes of a stack that are little whatever else there is; beyond them a stack is a part of its pyramid."""
_DEVICE: Final = 256 << 20
"""Bytes of a stack on another device: enough to fill it, and a small part of its memory."""
_GRADIENT_CACHE: Final = 2 << 20
"""As much of keys and values in a stack of the gradient, which has several matrices of weights beside them."""


@dataclass(frozen=True)
class Way:
    """How stacks are attended over."""

    name: str
    stacks: bool
    """Whether query blocks are stacked; else every block stands alone."""
    threads: bool
    """Whether Python threads with one thread of torch each share the work; else calls follow one another."""
    fused: bool
    """Whether torch's own attention does it, where no log-sum-exp is wanted; else products and a softmax."""


FUSED: Final = Way("fused", stacks=True, threads=False, fused=True)
"""Few large calls of torch's own attention, on any device; on a CPU the fastest with AMX."""

STACKS: Final = Way("stacks", stacks=True, threads=False, fused=False)
"""Batched products and a softmax: best for short lists."""

BLOCKS: Final = Way("blocks", stacks=False, threads=True, fused=False)
"""Products and a softmax of single blocks: best for long lists."""

WAYS: Final = (FUSED, STACKS, BLOCKS)


def choose_way(dtype: torch.dtype, device: torch.device, work: float) -> Way:
    """The way that suits a processor.

    Args:
        dtype: of the inputs.
        device: where they are.
        work: multiply-adds of a query block's product with the rows that it reads, on average; inf for the longest
            lists.
    """
    if device.type != "cpu" or has_tiles():
        return FUSED
    large = 2 * _LARGE_BLOCK if products_outrun_attention(dtype) else _LARGE_BLOCK
    return BLOCKS if work >= large else STACKS


def products_outrun_attention(dtype: torch.dtype) -> bool:
    """Whether this CPU's products of `dtype` run far above the rate of torch's attention.

    So it is with bfloat16 in AVX-512. With AMX both are fast.
    """
    return dtype == torch.bfloat16 and multiplies(dtype) and not has_tiles()


def stack_rows(way: Way, keys: torch.Tensor, block_m: int) -> int:
    """Rows of the pyramid `keys [H, P, D]` that the lists of a stack, of blocks of `block_m`, have together."""
    if not way.stacks:
        return 0
    if keys.device.type != "cpu":
        return _DEVICE // _row_bytes(keys)
    weights = 4 * block_m
    most, part = (_CACHE_WITH_TILES, 2 * keys.nbytes) if has_tiles() else (_CACHE, keys.nbytes // 2)
    return min(most, max(part, _LEAST)) // (_row_bytes(keys) + weights)


def gradient_rows(way: Way, keys: torch.Tensor) -> int:
    """`stack_rows` of the gradient."""
    if not way.stacks:
        return 0
    return (_GRADIENT_CACHE if keys.device.type == "cpu" else _DEVICE // 4) // _row_bytes(keys)


def _row_bytes(keys: torch.Tensor) -> int:
    return 2 * keys.shape[-1] * keys.element_size()
