"""Matrix products at the rate that the processor allows, and the dtypes that they are computed in."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def wide(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype of sums: float32, or float64 for float64."""
    return x if x.dtype == torch.float64 else x.float()


def operand(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype of products: its own, but float32 for float16 on a CPU, where its products are slow."""
    return x.float() if x.dtype == torch.float16 and x.device.type == "cpu" else x


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` of two operands; with float32, neither `b` nor its transpose may have gaps between rows."""
    return linear(a, b.T) if a.dtype == torch.float32 else a @ b


def batched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b.mT` of `[N, R, D]` and `[N, L, D]` on any device: `[N, R, L]`; rows of `b` lie side by side."""
    if a.dtype != torch.float32 or a.device.type != "cpu":
        # Not torch.matmul: for a batch of one it copies the transposed operand first.
        return torch.bmm(a, b.mT)
    each = [linear(rows, columns) for rows, columns in zip(a, b, strict=True)]
    return each[0][None] if len(each) == 1 else torch.stack(each)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` in float32."""
    if _FAST_LINEAR is None:
        return F.linear(x, weight, bias)
    return _FAST_LINEAR(x, weight, bias, "none", [], "")


def half_norm(q: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale / 2 * |q| ** 2` of queries `[m, D]`: times the spread of a row, it stands beside their product."""
    return wide(q).square().sum(-1) * (scale / 2)


def _onednn_linear() -> Callable[..., torch.Tensor] | None:
    """The float32 `mm` of torch calls MKL, which leaves AVX-512 unused on AMD; oneDNN's product is 2.1x as fast there.

    torch reaches oneDNN's float32 product only through the operator that its compiler emits. Where a build lacks it,
    `F.linear` gives the same numbers.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_FAST_LINEAR = _onednn_linear()
