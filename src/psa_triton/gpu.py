"""What all GPU kernels share: launches, and matrix products in the precision that the inputs deserve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import triton
import triton.language as tl

from psa_triton.impl import is_interpreting

Backend = Literal["cuda", "hip"]

SMALLEST_TILE = 16
"""Matrix units take at least this many rows."""
_BLOCKS_OF_THREAD = 16
"""Blocks of a row that a thread holds; see `warps_of_row`."""
_MOST_THREADS = 1024
"""Of a program, on any GPU."""


@dataclass(frozen=True)
class Launch:
    """A launch as a value: it can be run, or compiled for a GPU that is not there."""

    kernel: Any
    """A `triton.jit` function."""
    grid: tuple[int, ...]
    """Programs along each axis."""
    arguments: dict[str, Any]
    """Tensors, numbers and tuples of them, by parameter name."""
    constants: dict[str, Any]
    """The `tl.constexpr` parameters."""
    warps: int = 4
    """Warps that share a program."""
    stages: int = 1
    """Loop iterations whose loads are in flight at a time."""

    @property
    def options(self) -> dict[str, Any]:
        """What Triton's compiler is told. A product and a sum may be one operation, whatever its version's default."""
        return dict(num_warps=self.warps, num_stages=self.stages, enable_fp_fusion=True)

    @property
    def values(self) -> list[Any]:
        """Arguments one by one, those inside tuples too."""
        return list(_flat(self.arguments.values()))

    def run(self) -> None:
        """Launch on the device of the tensors, in its current stream."""
        device = next(x.device for x in self.values if isinstance(x, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, tuple) else (value,)


def current_backend() -> Backend:
    """What this build of torch runs kernels on."""
    return "hip" if torch.version.hip else "cuda"


def warp_size() -> int:
    """Threads of a warp, which AMD calls a wavefront."""
    return 64 if current_backend() == "hip" else 32


def warps_of_row(blocks: int) -> int:
    """Warps of a program that holds a row of so many blocks in registers: as few as hold it, up to a GPU's most.

    A thread holds `_BLOCKS_OF_THREAD`, so that most of what is summed, counted or sorted along a row stays within one.
    """
    return min(max(blocks // (warp_size() * _BLOCKS_OF_THREAD), 1), _MOST_THREADS // warp_size())


@cache
def current_target(device: torch.device) -> str:
    """What kernels for `device` are compiled for, `sm_90` or `gfx942`; in the interpreter, `interpreter`."""
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if current_backend() == "hip":
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def dim_tile(dim: int) -> int:
    """Head dimension as matrix units take it: the next power of two."""
    return max(triton.next_power_of_2(dim), SMALLEST_TILE)


def dot_precision(dtype: torch.dtype) -> str:
    """The `PRECISION` constant of kernels that call `dot` on tiles of `dtype`.

    Three TF32 products keep float32's precision at the speed of tensor cores. Triton's interpreter holds bfloat16 as
    bits and multiplies these: there tiles are widened first, which changes no product.
    """
    if is_interpreting():
        return "widened"
    return "tf32x3" if dtype == torch.float32 and current_backend() == "cuda" else "ieee"


@triton.jit
def tile_of_head(tiles):
    """Which of a head's `tiles` a program computes, and which head; on one axis, since the second ends at 65,535."""
    program = tl.program_id(0)
    return program % tiles, (program // tiles).to(tl.int64)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """`a @ b + total`, summed in float32."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)
