"""Matrix products inside GPU kernels, in the precision that the inputs deserve."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from psa_triton.impl import is_interpreting

Backend = Literal["cuda", "hip"]


def current_backend() -> Backend:
    """What this build of torch runs kernels on."""
    return "hip" if torch.version.hip else "cuda"


SMALLEST_TILE = 16
"""Matrix units take at least this many rows."""


def dim_tile(dim: int) -> int:
    """Head dimension as matrix units take it: the next power of two."""
    return max(triton.next_power_of_2(dim), SMALLEST_TILE)


def dot_precision(dtype: torch.dtype, backend: Backend) -> str:
    """The `PRECISION` constant of kernels that call `dot` on tiles of `dtype`.

    Three TF32 products keep float32's precision at the speed of tensor cores. Triton's interpreter holds bfloat16 as
    bits and multiplies these: there tiles are widened first, which changes no product.
    """
    if is_interpreting():
        return "widened"
    return "tf32x3" if dtype == torch.float32 and backend == "cuda" else "ieee"


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """`a @ b + total`, summed in float32."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)
