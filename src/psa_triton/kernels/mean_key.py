"""The mean key, which may be taken away from all keys: softmax does not see it, and smaller logits are rounded less.

A constant added to all keys adds the same to all logits of a query. Biases of projections make one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psa_triton.products import wide


def mean_key(k: Tensor, key_mask: Tensor | None, at_once: int | None = None) -> Tensor:
    """The mean of the keys `[B, Hkv, Nk, D]`, in their dtype: `[B, Hkv, 1, D]`; 0 in dimensions where it is not finite.

    Args:
        k: the keys.
        key_mask: bool `[B, Nk]`; keys that it leaves out have no part in it.
        at_once: keys of each head that are added up at a time, since on a CPU torch widens all of a sum's arguments
            before it adds; None for all.
    """
    if key_mask is None:
        count: Tensor | int = k.shape[2]
    else:
        count = key_mask.sum(1).clamp(min=1)[:, None, None, None]
        k = k.masked_fill(~key_mask[:, None, :, None], 0.0)
    parts = (k,) if at_once is None else k.split(at_once, 2)
    total = wide(k[:0]).new_zeros(*k.shape[:2], 1, k.shape[3])
    for part in parts:
        total = total + part.sum(2, keepdim=True, dtype=total.dtype)
    mean = total / count
    return mean.where(mean.isfinite(), 0.0).to(k.dtype)


def of_query_heads(mean: Tensor, heads: int) -> Tensor:
    """The mean keys `[..., Hkv, 1, D]` as `heads` query heads meet them: `[..., Hq, 1, D]` in the dtype of sums."""
    return wide(mean).repeat_interleave(heads // max(1, mean.shape[-3]), dim=-3)


def common_logit(q: Tensor, mean: Tensor, scale: float) -> Tensor:
    """What the mean key adds to the logits of each query, and so to its log-sum-exp: `[..., Hq, Nq]`."""
    return scale * (wide(q) @ of_query_heads(mean, q.shape[-3]).mT)[..., 0]


def shifted(lse: Tensor, by: Tensor) -> Tensor:
    """The log-sum-exp with something added to all logits of each query; -inf where it sees none, whatever is added."""
    return (lse + by).masked_fill(lse == -torch.inf, -torch.inf)
