"""One launch of a GPU kernel as a value, so that it can be run, or compiled for a GPU that is not there."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """What runs, on what grid, on which arguments, with which hardware choices."""

    kernel: Any
    """A `triton.jit` function."""
    grid: tuple[int, ...]
    """Programs along each axis."""
    arguments: dict[str, Any]
    """Tensors, ints and floats, by parameter name."""
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

    def run(self) -> None:
        """Launch on the device of the tensors, in its current stream."""
        device = next(x.device for x in self.arguments.values() if isinstance(x, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)
