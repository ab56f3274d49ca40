"""Attentions of one layer. A peer is a function that gets a `Problem` and gives what is to be timed.

To add one, write such a function and list it in `OPERATORS`. What it prepares outside the function it gives is not
timed: so are masks and levels, but for `psa_whole`. It raises `LeftOut` where it cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Final, Literal

import torch
import torch.nn.functional as F
from gpu.flex import flex_pyramid
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from peer.problem import BLOCK_M, BLOCK_N, BLOCK_SPARSE, BLOCKS, PYRAMID, LeftOut, Problem
from psa_triton import psa_attention, pyramid_attention

Run = Callable[[], Tensor]
Reads = Literal["all keys", "levels 1/0", "pyramid"]


@dataclass(frozen=True)
class Operator:
    """A peer."""

    prepare: Callable[[Problem], Run]
    reads: Reads


def sdpa(x: Problem) -> Run:
    return partial(F.scaled_dot_product_attention, *x.tensors, scale=x.scale)


def sdpa_backend(backend: SDPBackend, x: Problem) -> Run:
    x.need_cuda()

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*x.tensors, scale=x.scale)

    return run


def flex_dense(x: Problem) -> Run:
    return partial(_compiled_flex(), *x.tensors, scale=x.scale)


def flex_block_sparse(x: Problem) -> Run:
    """The mask of `psa_block_sparse`, as FlexAttention's."""
    chosen = x.block_sparse_levels == 1
    count, first = chosen.sum(-1, dtype=torch.int32), chosen.int().argsort(dim=-1, descending=True, stable=True).int()
    tokens = x.q.shape[2]
    mask = BlockMask.from_kv_blocks(count, first, BLOCK_SIZE=(BLOCK_M, BLOCK_N), seq_lengths=(tokens, tokens))
    return partial(_compiled_flex(), *x.tensors, scale=x.scale, block_mask=mask)


def flex_over_pyramid(x: Problem) -> Run:
    """The groups that `psa_pyramid` reads; the pyramid is made beforehand."""
    pyramid = flex_pyramid(x.k, x.v, x.pyramid_levels, **BLOCKS, is_causal=False, kv_block=BLOCK_N)
    return partial(pyramid.attend, x.q, scale=x.scale, attention=_compiled_flex())


def sage(x: Problem) -> Run:
    """SageAttention 1: queries and keys in 8 bits, Triton."""
    x.need_cuda()
    if find_spec("sageattention") is None:
        raise LeftOut("not installed: pip install 'sageattention<2'")
    from sageattention import sageattn

    # It smooths the keys it is given in place.
    return lambda: sageattn(x.q, x.k.clone(), x.v, is_causal=False, sm_scale=x.scale)


def psa_block_sparse(x: Problem) -> Run:
    return partial(pyramid_attention, *x.tensors, x.block_sparse_levels, **BLOCKS, scale=x.scale)


def psa_pyramid(x: Problem) -> Run:
    return partial(pyramid_attention, *x.tensors, x.pyramid_levels, **BLOCKS, scale=x.scale)


def psa_whole(x: Problem) -> Run:
    """With the estimate of importance and the choice of levels."""
    return partial(psa_attention, *x.tensors, PYRAMID, scale=x.scale)


def psa_whole_block_sparse(x: Problem) -> Run:
    return partial(psa_attention, *x.tensors, BLOCK_SPARSE, scale=x.scale)


def _compiled_flex() -> Callable[..., Tensor]:
    # Uncompiled it writes all scores, and ignores lists of blocks.
    return torch.compile(flex_attention, dynamic=False)


REFERENCE: Final = "torch SDPA"
OPERATORS: Final[dict[str, Operator]] = {
    REFERENCE: Operator(sdpa, "all keys"),
    "torch SDPA, flash": Operator(partial(sdpa_backend, SDPBackend.FLASH_ATTENTION), "all keys"),
    "torch SDPA, cuDNN": Operator(partial(sdpa_backend, SDPBackend.CUDNN_ATTENTION), "all keys"),
    "SageAttention 1": Operator(sage, "all keys"),
    "FlexAttention": Operator(flex_dense, "all keys"),
    "FlexAttention, block mask": Operator(flex_block_sparse, "levels 1/0"),
    "FlexAttention over the pyramid": Operator(flex_over_pyramid, "pyramid"),
    "PSA, levels 1/0 given": Operator(psa_block_sparse, "levels 1/0"),
    "PSA, levels given": Operator(psa_pyramid, "pyramid"),
    "PSA, levels 1/0, whole operator": Operator(psa_whole_block_sparse, "levels 1/0"),
    "PSA, whole operator": Operator(psa_whole, "pyramid"),
}
