"""Attentions of one layer. A peer is a function that gets a `Problem` and gives what is to be timed.

To add one, write such a function and list it in `OPERATORS`. What it prepares outside the function it gives is not
timed: so are masks and levels, but for the whole operator. It raises `LeftOut` where it cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Final, Literal

import torch
import torch.nn.functional as F
from flex_pyramid import flex_pyramid
from tensors import AttentionTensors, Grid
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from psa_triton import PSAConfig, psa_attention, pyramid_attention
from psa_triton.levels import levels_of
from psa_triton.ordering import grid_order
from psa_triton.tools.bench.flex import block_mask

BLOCK_M, BLOCK_N = 128, 64
BLOCKS = dict(block_m=BLOCK_M, block_n=BLOCK_N)
PYRAMID = PSAConfig(**BLOCKS, importance="pooled", use_rearrange=False)
"""The default shares: they read .15. Tokens are in Gilbert order already, as inside a model with PSA attached."""
BLOCK_SPARSE = PYRAMID.replace(mask_ratios={1: (0.0, 0.15), 0: (0.15, 1.0)})
"""As much, of full blocks alone."""
WINDOW: Final = (0.75, 0.445, 0.445)
"""Of frames, rows and columns, what a query reads: together as much."""


class LeftOut(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """Non-causal attention over tokens in Gilbert order; a number of tokens that whole blocks divide."""

    q: Tensor
    """`[1, H, N, D]`, as `k` and `v`."""
    k: Tensor
    v: Tensor
    grid: Grid

    @classmethod
    def of(cls, x: AttentionTensors, heads: int, device: torch.device, dtype: torch.dtype) -> Problem:
        """The first heads of `x`."""
        if x.grid is None or x.q.shape[2] % BLOCK_M:
            raise ValueError(f"x: expected tokens of a grid that blocks of {BLOCK_M} divide, got {x.q.shape[2]}")
        order = grid_order("Gilbert", x.grid)
        return cls(*(order.apply(t[:, :heads]).to(device, dtype) for t in (x.q, x.k, x.v)), x.grid)

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

    def need(self, package: str | None = None, install: str = "", *, cuda: bool = False) -> None:
        """Raises `LeftOut` where the package or an NVIDIA GPU is missing."""
        if cuda and self.q.device.type != "cuda":
            raise LeftOut("needs an NVIDIA GPU")
        if package is not None and find_spec(package) is None:
            raise LeftOut(f"not installed: pip install {install}")


Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Operator:
    """A peer."""

    prepare: Callable[[Problem], Run]
    reads: Literal["all keys", "levels 1/0", "pyramid", "a window"]


def sdpa(x: Problem) -> Run:
    return partial(F.scaled_dot_product_attention, *x.tensors)


def sdpa_backend(backend: SDPBackend, x: Problem) -> Run:
    x.need(cuda=True)
    return sdpa_kernel(backend)(sdpa(x))


def compiled_flex() -> Callable[..., Tensor]:
    # Uncompiled it writes all scores, and ignores lists of blocks.
    return torch.compile(flex_attention, dynamic=False)


def flex_block_sparse(x: Problem) -> Run:
    """The mask of PSA with levels 1/0, as FlexAttention's."""
    mask = block_mask(x.block_sparse_levels == 1, **BLOCKS, tokens=x.q.shape[2])
    return partial(compiled_flex(), *x.tensors, block_mask=mask)


def flex_over_pyramid(x: Problem) -> Run:
    """The groups that PSA reads; the pyramid is made beforehand."""
    pyramid = flex_pyramid(x.k, x.v, x.pyramid_levels, **BLOCKS, is_causal=False, kv_block=BLOCK_N)
    return partial(pyramid.attend, x.q, scale=x.q.shape[-1] ** -0.5, attention=compiled_flex())


def sage(x: Problem) -> Run:
    """SageAttention 1: queries and keys in 8 bits, Triton."""
    x.need("sageattention", "'sageattention<2'", cuda=True)
    from sageattention import sageattn

    # It smooths the keys it is given in place.
    return lambda: sageattn(x.q, x.k.clone(), x.v, is_causal=False)


def natten(x: Problem) -> Run:
    """Neighbourhood attention: each query reads a window of frames, rows and columns around it."""
    x.need("natten", "natten")
    from natten.functional import na3d

    order = grid_order("Gilbert", x.grid)
    q, k, v = (order.restore(t).transpose(1, 2).unflatten(1, x.grid).contiguous() for t in x.tensors)
    window = tuple(round(side * part) for side, part in zip(x.grid, WINDOW, strict=True))
    return lambda: order.apply(na3d(q, k, v, kernel_size=window).flatten(1, 3).transpose(1, 2))


def psa(config: PSAConfig, x: Problem) -> Run:
    """With the estimate of importance and the choice of levels."""
    return partial(psa_attention, *x.tensors, config)


REFERENCE: Final = "torch SDPA"
OPERATORS: Final[dict[str, Operator]] = {
    REFERENCE: Operator(sdpa, "all keys"),
    "torch SDPA, flash": Operator(partial(sdpa_backend, SDPBackend.FLASH_ATTENTION), "all keys"),
    "torch SDPA, cuDNN": Operator(partial(sdpa_backend, SDPBackend.CUDNN_ATTENTION), "all keys"),
    "SageAttention 1": Operator(sage, "all keys"),
    "NATTEN": Operator(natten, "a window"),
    "FlexAttention": Operator(lambda x: partial(compiled_flex(), *x.tensors), "all keys"),
    "FlexAttention, block mask": Operator(flex_block_sparse, "levels 1/0"),
    "FlexAttention over the pyramid": Operator(flex_over_pyramid, "pyramid"),
    "PSA, levels 1/0 given": Operator(
        lambda x: partial(pyramid_attention, *x.tensors, x.block_sparse_levels, **BLOCKS), "levels 1/0"
    ),
    "PSA, levels given": Operator(
        lambda x: partial(pyramid_attention, *x.tensors, x.pyramid_levels, **BLOCKS), "pyramid"
    ),
    "PSA, levels 1/0, whole operator": Operator(partial(psa, BLOCK_SPARSE), "levels 1/0"),
    "PSA, whole operator": Operator(partial(psa, PYRAMID), "pyramid"),
}
