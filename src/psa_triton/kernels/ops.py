"""Pyramid attention as operators of torch: what autograd, `torch.compile` and exported graphs see of an implementation.

Levels have no gradient.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.kernels import gathered
from psa_triton.kernels.reading import Reading
from psa_triton.operators import operator
from psa_triton.products import wide

_SETTINGS: Final = (
    "int block_m, int block_n, bool is_causal, float scale, str pool_correction, int coarsest, str qk_dtype, str impl"
)
"""What an operator takes of `Blocks` and `Reading`."""
_INPUTS: Final = f"Tensor q, Tensor k, Tensor v, Tensor levels, Tensor? key_mask, {_SETTINGS}"


def _attend_fake(q, k, v, levels, key_mask, *settings):
    return torch.empty_like(q), wide(q[:0]).new_empty(q.shape[:3] if settings[-1] else (0,))


@operator("pyramid_attention", _attend_fake, schema=f"({_INPUTS}, bool want_lse) -> (Tensor, Tensor)")
def attend(q, k, v, levels, key_mask, block_m, block_n, is_causal, *settings):
    """`kernels.attend`, but by the reference. The log-sum-exp is `[0]` if it is not wanted."""
    *reading_settings, want_lse = settings
    blocks, reading = Blocks.of(q, k, block_m, block_n, is_causal, key_mask), Reading(*reading_settings)
    if q.numel() == 0 or k.numel() == 0:
        lse = wide(q[:0]).new_full(q.shape[:3] if want_lse else (0,), -torch.inf)
        return torch.zeros_like(q), lse
    if reading.impl == "triton":
        from psa_triton.kernels import triton

        out, lse = triton.pyramid_attention(q, k, v, levels, blocks, reading)
        return out, lse if want_lse else lse.new_empty(0)
    way = gathered.FUSED if reading.impl == "torch" else None
    out, wanted = gathered.pyramid_attention(q, k, v, levels, blocks, reading, want_lse=want_lse, way=way)
    return out, wide(q[:0]).new_empty(0) if wanted is None else wanted


def _attend_backward_fake(grad_out, grad_lse, out, lse, q, k, v, *_others):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


@operator(
    "pyramid_attention_backward",
    _attend_backward_fake,
    schema=f"(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def attend_backward(grad_out, grad_lse, out, lse, q, k, v, levels, key_mask, block_m, block_n, is_causal, *settings):
    """Gradients of q, k and v: contiguous, of their shapes and dtype."""
    blocks, reading = Blocks.of(q, k, block_m, block_n, is_causal, key_mask), Reading(*settings)
    if q.numel() == 0 or k.numel() == 0:
        return tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    implementation: Any = gathered
    if reading.impl == "triton":
        from psa_triton.kernels import triton as implementation
    return implementation.pyramid_attention_backward(grad_out, grad_lse, out, lse, q, k, v, levels, blocks, reading)


def _save_for_backward(ctx, inputs, output):
    q, k, v, levels, key_mask, *ctx.settings, ctx.want_lse = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, q, k, v, levels, key_mask)


def _backward(ctx, grad_out, grad_lse):
    out, lse, *inputs = ctx.saved_tensors
    if not ctx.want_lse:  # inside `torch.vmap` no tensor says that it requires a gradient
        with torch.no_grad():
            out, lse = attend(*inputs, *ctx.settings, True)
    grads = (None, None, None)
    if grad_out is not None or grad_lse is not None:
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grads = AttendBackward.apply(grad_out, grad_lse, out, lse, *inputs, *ctx.settings)
    return *grads, *[None] * 11


attend.register_autograd(_backward, setup_context=_save_for_backward)


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


@operator("check_levels", lambda levels, coarsest: None, vmap=False)
def check_levels(levels: Tensor, coarsest: int) -> None:
    """Raise ValueError unless all of `levels` `[B, Hq, nq, nk]` are 0 or powers of two up to `coarsest`."""
    unknown = (levels < 0) | ((levels & (levels - 1)) != 0) | (levels > coarsest)
    if unknown.any():
        came = sorted(levels[unknown].unique().tolist())
        raise ValueError(f"levels: expected 0 or powers of two up to {coarsest}, got also {came}")


check_levels.register_vmap(lambda info, in_dims, levels, coarsest: (check_levels(levels, coarsest), None))
