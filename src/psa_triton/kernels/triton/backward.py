"""What both backward kernels read: one attention, and the gradient that reached its results."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from psa_triton.pyramid.triton_kernels import KeptRows


@dataclass(frozen=True)
class Attended:
    """An attention that was computed, and what its results' gradients are."""

    q: Tensor
    """`[B, Hq, Nq, D]`, any strides, as are k, v, out and grad_out."""
    k: Tensor
    v: Tensor
    """`[B, Hkv, Nk, D]`."""
    pooled_k: Tensor
    pooled_v: Tensor
    """Their coarser levels, as `pyramid.triton_kernels.pool` makes them from level 2 on."""
    spread: Tensor | None
    """Of the rows of `pooled_k`, by which their logits are corrected; None for none."""
    kept: KeptRows | None
    """What a key mask leaves of tokens and rows; None if it leaves all."""
    out: Tensor
    """The output, `[B, Hq, Nq, D]`."""
    lse: Tensor
    """The log-sum-exp, float32 `[B, Hq, Nq]`, contiguous."""
    grad_out: Tensor
    """Shape and dtype of the output."""
    grad_lse: Tensor | None
    """Like the log-sum-exp; None if nothing depends on it."""
    block_m: int
    block_n: int
    is_causal: bool
    scale: float
