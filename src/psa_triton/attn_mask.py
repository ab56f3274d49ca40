"""The mask that `scaled_dot_product_attention` takes, where all that it says is which keys are padding."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from psa_triton.operators import operator

LEFT_OUT: Final = -1e4
"""What is added to the logits of keys that are left out is at most this; models write -10000, -1e9, the least number
of their dtype, or -inf."""


def as_key_mask(attn_mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The key mask, bool `[B, Nk]`, that says what `attn_mask` says. Looking at its values waits for the device.

    Args:
        attn_mask: bool, True for what is seen, or of a floating dtype and added to the logits: 0, or `LEFT_OUT` or
            less. Broadcasts with `[B, Hq, Nq, Nk]` and is the same for every head and query.
        q, k: `[B, Hq, Nq, D]` and `[B, Hkv, Nk, D]`.

    Raises:
        TypeError: it is no tensor, or neither bool nor floating.
        ValueError: its shape or device does not fit, it differs between heads or queries, or it is a bias.
    """
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask: expected a tensor or None, got {type(attn_mask).__name__}")
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise TypeError(
            f"attn_mask: expected bool, True for what is seen, or a floating dtype that is added to the logits, "
            f"got {attn_mask.dtype}; convert ones and zeros with .bool()"
        )
    full = (*q.shape[:3], k.shape[2])
    pairs = zip(reversed(attn_mask.shape), reversed(full), strict=False)
    if attn_mask.dim() > 4 or any(size != 1 and size != wanted for size, wanted in pairs):
        raise ValueError(
            f"attn_mask: expected a shape that broadcasts with [batch, query heads, queries, keys] = {full}, "
            f"got {tuple(attn_mask.shape)}"
        )
    if attn_mask.device != k.device:
        raise ValueError(f"attn_mask: expected the device of k, {k.device}, got {attn_mask.device}")
    attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    return _key_mask_op(attn_mask.expand(full[0], -1, -1, full[3]))


@operator("key_mask", lambda mask: mask.new_empty(mask.shape[0], mask.shape[3], dtype=torch.bool))
def _key_mask_op(attn_mask: Tensor) -> Tensor:
    if attn_mask.numel() == 0:  # no query to leave a key out for
        return attn_mask.new_ones(attn_mask.shape[0], attn_mask.shape[3], dtype=torch.bool)
    one = attn_mask[:, :1, :1]
    # What is expanded along a dimension is the same there.
    heads, queries = (attn_mask.shape[dim] if attn_mask.stride(dim) else 1 for dim in (1, 2))
    if not (attn_mask[:, :heads, :queries] == one).all():
        raise ValueError(
            "attn_mask: expected a mask that leaves out the same keys for every head and query, got one that differs; "
            "pyramid attention has no others. For a causal mask pass is_causal=True, with key_mask for padding; for "
            "any other use scaled_dot_product_attention"
        )
    keys = one[:, 0, 0]
    if keys.dtype == torch.bool:
        return keys.clone()
    keep = keys == 0
    if not (keep | (keys <= LEFT_OUT)).all():
        raise ValueError(
            f"attn_mask: expected 0 for keys that are there and -inf, or {LEFT_OUT:g} or less, for those left out, got "
            "other values; pyramid attention adds no bias to its logits"
        )
    return keep
