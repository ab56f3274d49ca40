"""The mean key, which may be taken away from all keys: softmax does not see it, and smaller logits are rounded less.

A constant added to all keys adds the same to all logits of a query. Biases of projections make one.
"""

from __future__ import annotations

from torch import Tensor

from psa_triton.products import wide


def mean_key(k: Tensor, key_mask: Tensor | None) -> Tensor:
    """The mean of the keys `[B, Hkv, Nk, D]`, in their dtype: `[B, Hkv, 1, D]`; 0 in dimensions where it is not finite.

    Keys that `key_mask`, bool `[B, Nk]`, leaves out have no part in it.
    """
    if key_mask is None:
        mean = k.mean(2, keepdim=True, dtype=wide(k[:0]).dtype)
    else:
        kept = k.masked_fill(~key_mask[:, None, :, None], 0.0)
        total = kept.sum(2, keepdim=True, dtype=wide(k[:0]).dtype)
        mean = total / key_mask.sum(1).clamp(min=1)[:, None, None, None]
    return mean.where(mean.isfinite(), 0.0).to(k.dtype)


def of_query_heads(mean: Tensor, heads: int) -> Tensor:
    """The mean keys `[..., Hkv, 1, D]` as `heads` query heads meet them: `[..., Hq, 1, D]` in the dtype of sums."""
    return wide(mean).repeat_interleave(heads // max(1, mean.shape[-3]), dim=-3)


def common_logit(q: Tensor, mean: Tensor, scale: float) -> Tensor:
    """What the mean key adds to the logits of each query, and so to its log-sum-exp: `[..., Hq, Nq]`."""
    return scale * (wide(q) @ of_query_heads(mean, q.shape[-3]).mT)[..., 0]
