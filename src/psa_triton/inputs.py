"""Checks of the tensors that every stage of the operator takes, with errors that say what to change."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_attention_inputs(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    """Check that `q [B, Hq, Nq, D]`, `k` and `v [B, Hkv, Nk, D]` belong together.

    Raises:
        TypeError: an argument that is no tensor, a dtype that is not supported, or dtypes or devices that differ.
        ValueError: a rank, size or head count that does not fit.
    """
    named = [("q", q), ("k", k)] + ([] if v is None else [("v", v)])
    for name, x in named:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(
                f"{name}: expected 4 dimensions [batch, heads, tokens, channels], got shape {tuple(x.shape)}"
            )
        if 0 in x.shape:
            raise ValueError(f"{name}: expected at least one batch, head, token and channel, got {tuple(x.shape)}")
        if x.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise TypeError(f"{name}: expected one of {known}, got {x.dtype}; convert it first")
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(
                f"{name}: expected dtype and device of q, {q.dtype} on {q.device}, got {x.dtype} on {x.device}"
            )
        if x.shape[0] != q.shape[0] or x.shape[3] != q.shape[3]:
            raise ValueError(
                f"{name}: expected batch {q.shape[0]} and head dimension {q.shape[3]} as in q, got {tuple(x.shape)}"
            )
    if q.shape[3] % 8:
        raise ValueError(f"q: expected a head dimension that is a multiple of 8, got {q.shape[3]}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"q: expected a multiple of k's {k.shape[1]} heads, got {q.shape[1]}")
    if v is not None and v.shape != k.shape:
        raise ValueError(f"v: expected the shape of k, {tuple(k.shape)}, got {tuple(v.shape)}")


def check_key_mask(key_mask: Tensor | None, k: Tensor) -> None:
    """Check that `key_mask`, if there is one, says of every key of `k [B, Hkv, Nk, D]` whether it is there.

    Raises:
        TypeError: it is no bool tensor.
        ValueError: its shape is not `[B, Nk]`, or its device is not that of `k`.
    """
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor):
        raise TypeError(f"key_mask: expected a bool tensor or None, got {type(key_mask).__name__}")
    if key_mask.dtype != torch.bool:
        raise TypeError(
            f"key_mask: expected bool, True for keys that are there, got {key_mask.dtype}; convert with .bool()"
        )
    if key_mask.shape != (k.shape[0], k.shape[2]):
        raise ValueError(f"key_mask: expected [batch, keys] = {(k.shape[0], k.shape[2])}, got {tuple(key_mask.shape)}")
    if key_mask.device != k.device:
        raise ValueError(f"key_mask: expected the device of k, {k.device}, got {key_mask.device}")


def resolve_scale(scale: float | None, dim: int) -> float:
    """The factor of the logits: `scale`, or `dim ** -0.5` if None.

    Raises:
        ValueError: a scale that is not a finite number.
    """
    if scale is None:
        return dim**-0.5
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, or None for head_dim ** -0.5, got {scale!r}")
    return float(scale)
