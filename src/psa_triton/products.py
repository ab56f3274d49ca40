"""Matrix products at the rate that the processor allows, and the dtypes that they are computed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F


def wide(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype of sums: float32, or float64 for float64."""
    return x if x.dtype == torch.float64 else x.float()


def operand(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype of products."""
    return x.to(operand_dtype(x))


def operand_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of products: that of `x`, but float32 where a CPU multiplies the narrower type slowly."""
    return torch.float32 if x.device.type == "cpu" and not multiplies(x.dtype) else x.dtype


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of `dtype` as they are. Without instructions for it torch goes by element.

    Of the narrow types that is bfloat16 alone: torch has no fast product of float16 but on the newest processors.
    """
    if dtype in (torch.float32, torch.float64):
        return True
    return dtype == torch.bfloat16 and has_wide_vectors() and bool(_capabilities().get("avx512_bf16"))


@cache
def has_wide_vectors() -> bool:
    """Whether torch uses AVX-512 here. `ATEN_CPU_CAPABILITY=avx2` makes it stand back."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@cache
def has_tiles() -> bool:
    """Whether torch multiplies bfloat16 by AMX here: in its own attention too, at ten times the rate of float32."""
    return has_wide_vectors() and bool(_capabilities().get("amx_bf16"))


def instructions() -> str:
    """What this CPU multiplies by: AMX, or torch's word, such as AVX512 or AVX2."""
    return "AMX" if has_tiles() else torch.backends.cpu.get_cpu_capability()


def _capabilities() -> dict[str, bool]:
    return dict(torch.cpu.get_capabilities())


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` of operands `[R, K]` and `[K, C]`, or of stacks of them; in float32, neither `b` nor `b.mT` has gaps."""
    if not _takes_linear(a, b.shape[-1]):
        return torch.mm(a, b) if a.dim() == 2 else torch.bmm(a, b)
    return linear(a, b.T) if a.dim() == 2 else torch.stack([linear(x, y.T) for x, y in zip(a, b, strict=True)])


def logits(
    q: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor, scale: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`scale * q @ keys.T + bias` of operands `[m, D]` and `[L, D]`, with `bias [L]`: `[m, L]`; or of stacks of them.

    In `out` if there is one and the product can write there.
    """
    if not _takes_linear(q, keys.shape[-2]):
        bias = bias.to(q.dtype)
        if q.dim() == 2:
            return torch.addmm(bias, q, keys.T, alpha=scale, out=out)
        return torch.baddbmm(bias[:, None], q, keys.mT, alpha=scale, out=out)
    q, bias = q * scale, bias.float()
    if q.dim() == 2:
        return linear(q, keys, bias)
    return torch.stack([linear(x, y, z) for x, y, z in zip(q, keys, bias, strict=True)])


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` in float32, on a CPU."""
    if _FAST_LINEAR is None:
        return F.linear(x, weight, bias)
    return _FAST_LINEAR(x, weight, bias, "none", [], "")


_MANY: Final = 1 << 24
"""Multiply-adds of a product from which on oneDNN's gains more than calls for each of a stack cost."""


def _takes_linear(x: torch.Tensor, columns: int) -> bool:
    """The float32 products of torch call MKL, which leaves AVX-512 unused on AMD: oneDNN's is 2.1 times as fast there.

    On narrower vectors MKL is as fast, and it takes a whole stack at once.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or _FAST_LINEAR is None or not has_wide_vectors():
        return False
    return x.dim() == 2 or x.shape[-2] * x.shape[-1] * columns >= _MANY


def _onednn_linear() -> Callable[..., torch.Tensor] | None:
    """Torch reaches oneDNN's float32 product only through the operator that its compiler emits.

    Where a build lacks it, `F.linear` gives the same numbers.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_FAST_LINEAR = _onednn_linear()
