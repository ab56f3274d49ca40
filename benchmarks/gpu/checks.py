"""Whether results are right: against the definition in float64, as close as eager attention in the same dtype comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gpu.cases import BLOCK_M, BLOCK_N, BLOCKS, CHECKED, Inputs, choose_levels, estimate, make_inputs, sparse_attention
from psa_triton.kernels import reference
from psa_triton.tools.shapes import AttentionShape

MARGIN = 2.0
"""A result may be this many times as far from the definition as eager dense attention is from its own."""
BACKWARD_TOKENS, BACKWARD_HEADS = 1000, 4
"""The definition's gradient takes memory quadratic in the tokens: it is compared at a shape cut to these."""


def check_forward(x: Inputs) -> dict[str, float]:
    """Relative error of the output in a query block midway and in the last, over eager attention's."""
    levels = _levels(x)
    out = sparse_attention(x, levels, max(CHECKED))
    last = levels.shape[2] - 1
    places = ((0, last // 2), (x.shape.heads - 1, last))
    return {f"head {h}, query block {i}": _block_error(x, levels, out, h, i) for h, i in places}


def check_backward(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Relative error of the gradients of q, k and v at a small shape, over eager attention's."""
    group = shape.heads // shape.key_heads
    key_heads = min(max(BACKWARD_HEADS // group, 1), shape.key_heads)
    tokens = min(shape.tokens, BACKWARD_TOKENS)
    small = replace(shape, heads=key_heads * group, key_heads=key_heads, prefix_tokens=0, grid=(1, 1, tokens))
    x = make_inputs(small, device, dtype)
    levels = _levels(x)
    wide = Inputs(x.shape, *(t.double() for t in x.tensors()))
    errors = _errors(
        _gradients(x, lambda x: sparse_attention(x, levels, max(CHECKED))),
        _gradients(wide, lambda x: _definition(x, levels)),
    )
    allowed = _errors(_gradients(x, _eager), _gradients(wide, _eager))
    return {f"gradient of {n}": error / limit for n, error, limit in zip("qkv", errors, allowed, strict=True)}


def _levels(x: Inputs) -> Tensor:
    return choose_levels(estimate(x, "pooled"), x.shape, CHECKED)


def _block_error(x: Inputs, levels: Tensor, out: Tensor, head: int, block: int) -> float:
    """Of one query block: it alone, and the keys it may see, fit into memory in float64 at any length."""
    rows = slice(block * BLOCK_M, min((block + 1) * BLOCK_M, x.shape.tokens))
    seen = rows.stop if x.shape.is_causal else x.shape.tokens
    key_head = head // (x.shape.heads // x.shape.key_heads)
    part = Inputs(
        replace(x.shape, heads=1, key_heads=1),
        x.q[:, head : head + 1, rows],
        *(t[:, key_head : key_head + 1, :seen] for t in (x.k, x.v)),
    )
    # On the CPU: the definition takes one small step for every group of keys.
    wide = Inputs(part.shape, *(t.cpu().double() for t in part.tensors()))
    part_levels = levels[:, head : head + 1, block : block + 1, : -(-seen // BLOCK_N)].cpu()
    exact = _definition(wide, part_levels)
    return _error(out[:, head : head + 1, rows].cpu(), exact) / _error(_eager(part).cpu(), _eager(wide))


def _definition(x: Inputs, levels: Tensor) -> Tensor:
    scale = x.q.shape[-1] ** -0.5
    out, _ = reference.pyramid_attention(*x.tensors(), levels, **BLOCKS, is_causal=x.shape.is_causal, scale=scale)
    return out


def _eager(x: Inputs) -> Tensor:
    """Dense attention, step by step, every result in the inputs' dtype."""
    group = x.q.shape[1] // x.k.shape[1]
    k, v = (t.repeat_interleave(group, dim=1) for t in (x.k, x.v))
    logits = x.q @ k.mT * x.q.shape[-1] ** -0.5
    if x.shape.is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(future.triu(1 + k.shape[2] - x.q.shape[2]), float("-inf"))
    return logits.softmax(-1) @ v


def _gradients(x: Inputs, attention: Callable[[Inputs], Tensor]) -> tuple[Tensor, ...]:
    """Of q, k and v, for the same gradient of the output whatever the dtype."""
    leaves = [t.detach().requires_grad_() for t in x.tensors()]
    out = attention(Inputs(x.shape, *leaves))
    generator = torch.Generator(x.device).manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator, device=x.device).to(torch.bfloat16).to(out.dtype)
    return torch.autograd.grad(out, leaves, upstream)


def _errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    return [_error(a, b) for a, b in zip(found, exact, strict=True)]


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative, in norm; not a number if anything found is not."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())
