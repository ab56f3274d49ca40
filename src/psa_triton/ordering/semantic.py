"""Orders that follow the data: tokens that k-means puts in one cluster stand together, for each head by itself.

Attention without a causal mask depends neither on the order of keys nor on that of queries, so the two may be ordered
apart, each by its own clusters. Lloyd's algorithm with `_ITERATIONS` updates takes `(2 * _ITERATIONS + 1) * clusters *
N * D` multiply-adds a tensor: for queries and keys together about 5.5% of dense attention's `2 * N * N * D`, and less
once the number of clusters has reached its limit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from psa_triton.operators import each_item, operator
from psa_triton.ordering.grid import grid_order
from psa_triton.ordering.order import TokenOrder

SemanticMethod = Literal["SemanticAware", "Hybrid"]

# About one cluster for each of the largest key blocks: a finer clustering would not survive the cut into blocks.
_TOKENS_PER_CLUSTER = 128
# Keeps the cost linear in N on long videos.
_MAX_CLUSTERS = 256
_ITERATIONS = 3
_POWER_ITERATIONS = 8
# Largest number of distances held at once, 64 MiB of float32.
_DISTANCES = 1 << 24
# Share of a channel's mean that a token may be away from it by rounding alone.
_ROUNDING = 1e-6
# Two centroids are equally near if their distances differ by less than this share: some hundred roundings of float32.
_TIE = 1e-5


@torch.no_grad()
def semantic_order(
    x: Tensor,
    *,
    method: SemanticMethod,
    grid: tuple[int, int, int] | None = None,
    prefix_tokens: int = 0,
    keep: Tensor | None = None,
) -> TokenOrder:
    """An order per head that puts the tokens of a k-means cluster together and alike clusters side by side.

    The same input gives the same order on every run on a device, and an item of a batch the order that it has alone:
    clusters start at evenly spaced tokens, no random number is drawn, and of equally near centroids a token takes the
    first. Non-finite values count as 0. There is one cluster for 128 tokens, 256 clusters at most.

    No clustering is continuous: a token halfway between two centroids goes to one or the other, and what follows it in
    the order moves by one place. But inputs that differ by rounding give another order only where a token is that close
    to halfway, which is rare; equal tokens, as of a still picture, are together whatever the rounding.

    Args:
        x: queries or keys `[B, H, N, D]`, floating point.
        method: `SemanticAware`, tokens of a cluster stay in raster order, or `Hybrid`, they follow the Gilbert curve.
        grid: visual tokens along (t, h, w), `t * h * w = N - prefix_tokens`; needed by `Hybrid`.
        prefix_tokens: first tokens of the sequence that keep their place.
        keep: bool `[B, N]`, which tokens are there; None if all are. After the prefix the others stand behind these,
            and what they hold does not matter.

    Returns:
        An order with a permutation `[B, H, N]` on the device of `x`.
    """
    if method == "SemanticAware":
        inside = torch.arange(x.shape[2] - prefix_tokens, device=x.device)
    else:
        assert grid is not None
        inside = grid_order("Gilbert", grid, device=x.device).permutation
    visual = x[:, :, prefix_tokens:]
    if keep is None:
        place = _cluster_places(visual)
    else:
        left_out = ~keep[:, None, prefix_tokens:]
        place = _cluster_places(visual.masked_fill(left_out[..., None], 0.0)).masked_fill(left_out, _MAX_CLUSTERS)
    permutation = inside[place[..., inside].argsort(dim=-1, stable=True)]
    return TokenOrder.from_permutation(permutation).with_prefix(prefix_tokens)


@operator("cluster_places", lambda x: x.new_empty(x.shape[:3], dtype=torch.int64))
def _cluster_places(x: Tensor) -> Tensor:
    """Place of each token's cluster among the clusters of its head: int64 `[B, H, N]` for `[B, H, N, D]`."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[:3], dtype=torch.int64)
    return each_item(lambda item: _ordered_clusters(_centred(item)), x)


def _centred(x: Tensor) -> Tensor:
    """`x` in float32 without what all tokens of a head have in common, which would blur their distances.

    Of channels that are the same but for rounding nothing is left: it would be all that clusters are made of.
    """
    finite = torch.nan_to_num(x.float(), nan=0.0, posinf=0.0, neginf=0.0).contiguous()
    mean = finite.mean(2, keepdim=True)
    centred = finite - mean
    return centred.masked_fill_(centred.abs() <= _ROUNDING * mean.abs(), 0.0)


def _ordered_clusters(x: Tensor) -> Tensor:
    """Place of each token's cluster among the clusters: int64 `[B, H, N]` for float32 `[B, H, N, D]`."""
    tokens = x.shape[2]
    clusters = min(-(-tokens // _TOKENS_PER_CLUSTER), _MAX_CLUSTERS)
    seeds = (2 * torch.arange(clusters, device=x.device) + 1) * tokens // (2 * clusters)
    centroids = x[:, :, seeds]
    for _ in range(_ITERATIONS):
        centroids = _means(x, _nearest(x, centroids), centroids)
    return _place(centroids).gather(-1, _nearest(x, centroids))


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid, the first of those that are as near but for rounding: int64 `[B, H, N]`."""
    half_norm = centroids.square().sum(-1).unsqueeze(-2) / 2
    largest = half_norm.amax(-1, keepdim=True)
    nearest = []
    for chunk in x.split(_chunk(centroids), dim=2):
        distance = half_norm - chunk @ centroids.mT  # half its square, less what all centroids have in common
        rounding = _TIE * (largest + chunk.square().sum(-1, keepdim=True) / 2)
        as_near = distance <= distance.amin(-1, keepdim=True) + rounding
        nearest.append(as_near.to(torch.int8).argmax(-1))
    return torch.cat(nearest, dim=-1)


def _means(x: Tensor, cluster: Tensor, centroids: Tensor) -> Tensor:
    """Mean of each cluster's tokens; an empty cluster keeps its centroid.

    Sums are matrix products and not scattered additions, whose order, and so result, varies from run to run on a GPU.
    """
    index = torch.arange(centroids.shape[2], device=x.device).unsqueeze(-1)
    total = torch.zeros_like(centroids)
    count = torch.zeros_like(centroids[..., :1])
    size = _chunk(centroids)
    for chunk, labels in zip(x.split(size, dim=2), cluster.split(size, dim=2), strict=True):
        member = (labels.unsqueeze(2) == index).to(x.dtype)
        total += member @ chunk
        count += member.sum(-1, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1), centroids)


def _chunk(centroids: Tensor) -> int:
    """Tokens whose distances to all centroids of all heads are held at once."""
    batch, heads, clusters, _ = centroids.shape
    return max(1, _DISTANCES // max(1, batch * heads * clusters))


def _place(centroids: Tensor) -> Tensor:
    """Place of each centroid along the direction in which the centroids of a head vary most: int64 `[B, H, K]`.

    The search starts from how the centroids change with their number, that is along the sequence. This gives the
    direction its sign, and a small change of the centroids changes it little.
    """
    centred = centroids - centroids.mean(dim=2, keepdim=True)
    clusters = centroids.shape[2]
    number = torch.arange(clusters, device=centroids.device, dtype=centroids.dtype) - (clusters - 1) / 2
    direction = normalize(centred.mT @ number.unsqueeze(-1), dim=2)
    for _ in range(_POWER_ITERATIONS):
        direction = normalize(centred.mT @ (centred @ direction), dim=2)
    return (centred @ direction).squeeze(-1).argsort(dim=-1, stable=True).argsort(dim=-1)
