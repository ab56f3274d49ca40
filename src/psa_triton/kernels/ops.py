"""Pyramid attention as operators of torch: what autograd, `torch.compile` and exported graphs see of an implementation.

Each has a fake form (shapes without values), and the forward a backward. Levels have no gradient. `torch.vmap` makes
the mapped dimension a part of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psa_triton.folding import register_folding
from psa_triton.kernels import gathered

# Annotations below are read by torch to make each operator's schema.


@torch.library.custom_op("psa_triton::pyramid_attention", mutates_args=())
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    levels: Tensor,
    block_m: int,
    block_n: int,
    coarsest: int,
    is_causal: bool,
    scale: float,
    pool_correction: str,
    want_lse: bool,
    impl: str,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`kernels.pyramid_attention` by `impl`, `torch`, `cpu` or `triton`.

    Args:
        coarsest: no level is coarser than this.
        want_lse: whether the log-sum-exp is wanted; a gradient that finds none computes it again.

    Returns:
        The output, and the log-sum-exp `[B, Hq, Nq]`, `[0]` if it is not wanted.
    """
    if q.numel() == 0 or k.numel() == 0:
        lse = q.new_full(q.shape[:3] if want_lse else (0,), float("-inf"), dtype=_wide(q.dtype))
        return torch.zeros_like(q), lse
    settings: dict[str, Any] = dict(
        block_m=block_m,
        block_n=block_n,
        is_causal=is_causal,
        scale=scale,
        pool_correction=pool_correction,
        key_mask=key_mask,
    )
    if impl == "triton":
        from psa_triton.kernels import triton

        out, lse = triton.pyramid_attention(q, k, v, levels, coarsest=coarsest, **settings)
        return out, lse if want_lse else lse.new_empty(0)
    way = gathered.FUSED if impl == "torch" else None
    out, wanted = gathered.pyramid_attention(q, k, v, levels, return_lse=want_lse, way=way, **settings)
    return out, out.new_empty(0, dtype=_wide(q.dtype)) if wanted is None else wanted


@attend.register_fake
def _attend_fake(
    q, k, v, levels, block_m, block_n, coarsest, is_causal, scale, pool_correction, want_lse, impl, key_mask=None
):
    return torch.empty_like(q), q.new_empty(q.shape[:3] if want_lse else (0,), dtype=_wide(q.dtype))


@torch.library.custom_op("psa_triton::pyramid_attention_backward", mutates_args=())
def attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    levels: Tensor,
    block_m: int,
    block_n: int,
    coarsest: int,
    is_causal: bool,
    scale: float,
    pool_correction: str,
    impl: str,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v: contiguous, of their shapes and dtype."""
    if q.numel() == 0 or k.numel() == 0:
        q_grad, k_grad, v_grad = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        return q_grad, k_grad, v_grad
    settings: dict[str, Any] = dict(
        block_m=block_m,
        block_n=block_n,
        is_causal=is_causal,
        scale=scale,
        pool_correction=pool_correction,
        key_mask=key_mask,
        grad_lse=grad_lse,
    )
    if impl == "triton":
        from psa_triton.kernels import triton

        return triton.pyramid_attention_backward(grad_out, q, k, v, out, lse, levels, coarsest=coarsest, **settings)
    return gathered.pyramid_attention_backward(grad_out, q, k, v, out, lse, levels, **settings)


@attend_backward.register_fake
def _attend_backward_fake(grad_out, grad_lse, q, k, v, *_others):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save_for_backward(ctx, inputs, output):
    q, k, v, levels, *ctx.settings, key_mask = inputs
    out, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, levels, key_mask)


def _backward(ctx, grad_out, grad_lse):
    q, k, v, out, lse, levels, key_mask = ctx.saved_tensors
    *settings, want_lse, impl = ctx.settings
    if not want_lse:  # inside `torch.vmap` no tensor says that it requires a gradient
        with torch.no_grad():
            out, lse = attend(q, k, v, levels, *settings, True, impl, key_mask)
    grads = (None, None, None)
    if grad_out is not None or grad_lse is not None:
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grads = AttendBackward.apply(grad_out, grad_lse, q, k, v, out, lse, levels, *settings, impl, key_mask)
    return *grads, *[None] * 10


attend.register_autograd(_backward, setup_context=_save_for_backward)
register_folding(attend)
register_folding(attend_backward)


class Attend(torch.autograd.Function):
    """`attend` for `torch.func`'s transforms too, which know no gradient that is registered with an operator."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return attend(*args)

    setup_context = staticmethod(_save_for_backward)
    backward = staticmethod(_backward)


class AttendBackward(torch.autograd.Function):
    """`attend_backward`, which has no gradient of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return attend_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            "psa_triton::pyramid_attention has no second derivative; impl='reference' has every derivative"
        )


@torch.library.custom_op("psa_triton::check_levels", mutates_args=())
def check_levels(levels: Tensor, coarsest: int) -> None:
    """Raise ValueError unless all of `levels` `[B, Hq, nq, nk]` are 0 or powers of two up to `coarsest`."""
    unknown = (levels < 0) | ((levels & (levels - 1)) != 0) | (levels > coarsest)
    if unknown.any():
        came = sorted(levels[unknown].unique().tolist())
        raise ValueError(f"levels: expected 0 or powers of two up to {coarsest}, got also {came}")


check_levels.register_fake(lambda levels, coarsest: None)
check_levels.register_vmap(lambda info, in_dims, levels, coarsest: (check_levels(levels, coarsest), None))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
