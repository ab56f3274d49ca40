"""What every peer gets: one attention's tensors on a device, and the masks that sparse ones use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from tensors import AttentionTensors
from torch import Tensor

from psa_triton import PSAConfig
from psa_triton.levels import density, levels_of
from psa_triton.ordering import grid_order

BLOCK_M, BLOCK_N = 128, 64
BLOCKS = dict(block_m=BLOCK_M, block_n=BLOCK_N)
PYRAMID = PSAConfig(block_m=BLOCK_M, block_n=BLOCK_N, importance="pooled", use_rearrange=False)
"""The default shares: they read .15. Tokens are in Gilbert order already, as inside a model with PSA attached."""
BLOCK_SPARSE = PYRAMID.replace(mask_ratios={1: (0.0, 0.15), 0: (0.15, 1.0)})
"""As much, of full blocks alone."""


class LeftOut(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """Non-causal attention over tokens in Gilbert order; a number of tokens that whole blocks divide."""

    q: Tensor
    """`[1, H, N, D]`."""
    k: Tensor
    """`[1, H, N, D]`."""
    v: Tensor
    """`[1, H, N, D]`."""
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @cached_property
    def pyramid_levels(self) -> Tensor:
        """int8 `[1, H, nq, nk]`, levels 1, 2, 8 and 0."""
        return levels_of(*self.tensors, PYRAMID)

    @cached_property
    def block_sparse_levels(self) -> Tensor:
        """int8 `[1, H, nq, nk]`, levels 1 and 0."""
        return levels_of(*self.tensors, BLOCK_SPARSE)

    def need_cuda(self) -> None:
        """Raises `LeftOut` unless tensors are on an NVIDIA GPU."""
        if self.q.device.type != "cuda":
            raise LeftOut("needs an NVIDIA GPU")


def make_problem(x: AttentionTensors, heads: int, device: torch.device, dtype: torch.dtype) -> Problem:
    """The first `heads` heads of `x` in Gilbert order."""
    if x.grid is None or x.q.shape[2] % BLOCK_M:
        raise ValueError(
            f"x: expected visual tokens that blocks of {BLOCK_M} divide, got {x.q.shape[2]} of grid {x.grid}"
        )
    order = grid_order("Gilbert", x.grid)
    q, k, v = (order.apply(t[:, :heads]).to(device, dtype) for t in (x.q, x.k, x.v))
    return Problem(q, k, v, x.scale)


def share_read(levels: Tensor) -> float:
    """Groups read over keys."""
    return float(density(levels).mean())
