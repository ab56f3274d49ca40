"""A few query blocks of an attention in a token order, with what dense attention gives them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Final, Literal

import torch
import torch.nn.functional as F
from choices import Choices
from tensors import AttentionTensors
from torch import Tensor

from psa_triton.ordering import TokenOrder, grid_order, semantic_order

Order = Literal["raster", "Gilbert", "STA", "SemanticAware", "Hybrid"]

_FINEST: Final = 32
"""Exact mass is kept for key blocks of so many tokens; those of larger blocks are sums."""
_KMEANS_PASSES, _TOKENS_PER_CLUSTER, _MOST_CLUSTERS = 7, 128, 256


@dataclass(frozen=True)
class Sample:
    """Query blocks spread evenly over the sequence (all under a causal mask), all keys and values, in a token order."""

    q: Tensor
    """float32 `[1, Hq, blocks * block_m, D]`."""
    k: Tensor
    """float32 `[1, Hkv, N, D]`."""
    v: Tensor
    """float32 `[1, Hkv, N, D]`."""
    expected: Tensor
    """Dense attention of `q`, its shape."""
    block_m: int
    mass: Tensor | None = None
    """True attention mass of key blocks of 32, a mean over each query block: float32 `[1, H, blocks, ceil(N / 32)]`;
    None under a causal mask."""
    order_cost: float = 0.0
    """Of finding the order, as a share of dense attention's multiply-adds."""

    @property
    def is_causal(self) -> bool:
        return self.mass is None

    @cached_property
    def choices(self) -> Choices:
        return Choices(self.q, self.k, self.v, is_causal=self.is_causal)

    def exact_importance(self, block_n: int) -> Tensor:
        """True attention mass of key blocks, `[1, H, blocks, ceil(N / block_n)]`; without a causal mask."""
        assert self.mass is not None
        per_block = block_n // _FINEST
        missing = -self.mass.shape[-1] % per_block
        return F.pad(self.mass, (0, missing)).unflatten(-1, (-1, per_block)).sum(-1)


def take_sample(x: AttentionTensors, order: Order, *, block_m: int, blocks: int) -> Sample:
    """Choose `blocks` query blocks in `order`, or all if there are fewer; ragged last blocks are left out."""
    if x.is_causal:
        dense = F.scaled_dot_product_attention(x.q, x.k, x.v, is_causal=True, enable_gqa=True)
        return Sample(x.q, x.k, x.v, dense, block_m)
    for_queries, for_keys, cost = _orders(x, order)
    q, k, v = (o.apply(t) if o else t for o, t in ((for_queries, x.q), (for_keys, x.k), (for_keys, x.v)))
    whole = q.shape[2] // block_m
    chosen = torch.linspace(0, whole - 1, min(blocks, whole)).round().long()
    q = q[:, :, : whole * block_m].unflatten(2, (whole, block_m))[:, :, chosen].flatten(2, 3)
    expected, mass = _dense(q, k, v, block_m)
    return Sample(q, k, v, expected, block_m, mass, cost)


def _orders(x: AttentionTensors, order: Order) -> tuple[TokenOrder | None, TokenOrder | None, float]:
    """Orders of queries and of keys, and what it costs to find them."""
    if order == "raster":
        return None, None, 0.0
    if order in ("SemanticAware", "Hybrid"):
        tokens = x.q.shape[2]
        clusters = min(-(-tokens // _TOKENS_PER_CLUSTER), _MOST_CLUSTERS)
        # k-means of queries and of keys, N * clusters * D a pass, against QK^T and PV.
        cost = 2 * _KMEANS_PASSES * clusters / (2 * tokens)
        return semantic_order(x.q, method=order, grid=x.grid), semantic_order(x.k, method=order, grid=x.grid), cost
    found = grid_order(order, x.grid)
    return found, found, 0.0


def _dense(q: Tensor, k: Tensor, v: Tensor, block_m: int) -> tuple[Tensor, Tensor]:
    """Dense attention, and the mass that falls on each key block of 32; a query block of a head at a time."""
    expected, scale = torch.empty_like(q), q.shape[-1] ** -0.5
    tokens, blocks = k.shape[2], q.shape[2] // block_m
    mass = q.new_zeros(*q.shape[:2], blocks, -(-tokens // _FINEST))
    for head, block in product(range(q.shape[1]), range(blocks)):
        rows = slice(block * block_m, (block + 1) * block_m)
        weights = (q[0, head, rows] * scale @ k[0, head].T).softmax(-1)
        expected[0, head, rows] = weights @ v[0, head]
        per_key = F.pad(weights.mean(0), (0, -tokens % _FINEST))
        mass[0, head, block] = per_key.unflatten(-1, (-1, _FINEST)).sum(-1)
    return expected, mass
