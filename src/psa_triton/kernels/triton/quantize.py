"""The keys of a pyramid in 8 bits, as `kernels/int8.py` defines it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.gpu import Launch, dim_tile, tile_of_head
from psa_triton.kernels.int8 import STEPS, TINY

_ROWS = 32
"""Rows of a program."""
_STEPS: tl.constexpr = tl.constexpr(STEPS)
_TINY: tl.constexpr = tl.constexpr(TINY)
_ROUNDS: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 * 2**23: added to a small number, it leaves no room for a fraction."""


def quantize(k: Tensor, pooled_k: Tensor | None, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and pooled keys in int8, and what a step of each row is.

    Args:
        k: `[B, Hkv, Nk, D]`, any strides.
        pooled_k: `[B, Hkv, R, D]`, contiguous; None for none.
        padded: rows of level 1, whole blocks.

    Returns:
        int8, both of them (`k` again for None), contiguous; and float32 `[B, Hkv, padded + R]`, nan for a row that is
        not finite.
    """
    step = k.new_empty(*k.shape[:2], padded + (0 if pooled_k is None else pooled_k.shape[2]), dtype=torch.float32)
    k = _quantize(k, step)
    return k, k if pooled_k is None else _quantize(pooled_k, step[:, :, padded:]), step


def _quantize(x: Tensor, step: Tensor) -> Tensor:
    batch, heads, rows, dim = x.shape
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    Launch(
        _quantize_kernel,
        (triton.cdiv(rows, _ROWS) * batch * heads,),
        dict(x=x, out=out, step=step, heads=heads, rows=rows, step_stride=step.stride(1), x_strides=x.stride()),
        dict(DIM=dim, DIM_TILE=dim_tile(dim), TILE=_ROWS),
        warps=4,
    ).run()
    return out


@triton.jit
def _quantize_kernel(
    x, out, step, heads, rows, step_stride, x_strides, DIM: tl.constexpr, DIM_TILE: tl.constexpr, TILE: tl.constexpr
):
    tile, head = tile_of_head(tl.cdiv(rows, TILE))
    row, d = tile * TILE + tl.arange(0, TILE), tl.arange(0, DIM_TILE)
    is_row = row < rows
    mask, place = is_row[:, None] & (d[None, :] < DIM), row[:, None].to(tl.int64)
    x += head // heads * x_strides[0] + head % heads * x_strides[1]
    numbers, size = to_int8(tl.load(x + place * x_strides[2] + d[None, :] * x_strides[3], mask=mask, other=0.0))
    tl.store(out + (head * rows + place) * DIM + d[None, :], numbers, mask=mask)
    tl.store(step + head * step_stride + row, size, mask=is_row)


@triton.jit
def to_int8(rows):
    """Rows rounded to multiples of a step each: int8, and the steps."""
    rows = rows.to(tl.float32)
    largest = tl.max(tl.abs(rows), axis=1)
    inverse = tl.where(largest > _TINY, tl.div_rn(_STEPS * 1.0, largest), 0.0)
    numbers = (rows * inverse[:, None] + _ROUNDS) - _ROUNDS
    # What is not finite is no int8: it goes into the step.
    return numbers.to(tl.int8), largest * (1.0 / _STEPS) + tl.sum(rows * 0.0, axis=1)
