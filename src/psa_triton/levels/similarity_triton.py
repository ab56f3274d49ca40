"""Similarity caps on a GPU: one program a key block, in one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import block_count
from psa_triton.gpu import Launch, dim_tile, tile_of_head

if TYPE_CHECKING:
    from psa_triton.config import SimThresholds

_TILE = 32
"""Keys that are compared with later ones at a time."""


def similarity_caps(k: Tensor, n: int, thresholds: SimThresholds, key_mask: Tensor | None) -> Tensor:
    """What `similarity.similarity_caps` computes, up to the order of sums."""
    batch, heads, tokens, dim = k.shape
    caps = torch.empty(batch, heads, block_count(tokens, n), dtype=torch.int8, device=k.device)
    Launch(
        _caps_kernel,
        (caps.numel(),),
        dict(
            k=k,
            caps=caps,
            keep=None if key_mask is None else key_mask.to(torch.int8).contiguous(),
            thresholds=(float(thresholds.x2), float(thresholds.x4), float(thresholds.x8)),
            heads=heads,
            tokens=tokens,
            k_strides=k.stride(),
        ),
        dict(DIM=dim, DIM_TILE=dim_tile(dim), BLOCK=n, TILE=min(n, _TILE)),
    ).run()
    return caps


@triton.jit
def _caps_kernel(
    k,
    caps,
    keep,
    thresholds,
    heads,
    tokens,
    k_strides,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    block, head = tile_of_head(tl.cdiv(tokens, BLOCK))
    k += (head // heads) * k_strides[0] + (head % heads) * k_strides[1]
    if keep is not None:
        keep += (head // heads) * tokens
    first = block * BLOCK
    end = tl.minimum(first + BLOCK, tokens)
    cap = 1
    for s in tl.static_range(3):
        distance = (2 << s) - 1
        similarity = 0.0
        pairs = 0
        for start in range(first, end, TILE):
            t = start + tl.arange(0, TILE)
            x, x_norm, x_there = _load_keys(k, keep, t, end, k_strides, DIM, DIM_TILE)
            y, y_norm, y_there = _load_keys(k, keep, t + distance, end, k_strides, DIM, DIM_TILE)
            similarity += tl.sum(tl.sum(x * y, axis=1) / (x_norm * y_norm))
            pairs += tl.sum((x_there & y_there).to(tl.int32))
        passes = (similarity >= thresholds[s] * pairs) & (pairs > 0)
        cap = tl.where(passes, 2 << s, cap)
    # Alone: a key that is not finite need not be of any pair.
    largest = 0.0
    for start in range(first, end, TILE):
        _, norm, _ = _load_keys(k, keep, start + tl.arange(0, TILE), end, k_strides, DIM, DIM_TILE)
        largest += tl.sum(norm)
    is_finite = (largest < float("inf")) & (largest == largest)
    tl.store(caps + tl.program_id(0), tl.where(is_finite, cap, 1).to(tl.int8))


@triton.jit
def _load_keys(k, keep, t, end, k_strides, DIM: tl.constexpr, DIM_TILE: tl.constexpr):
    """Keys `t` in float32, their norms (at least 1e-12, as torch has it), and which are there; others are zeros."""
    d = tl.arange(0, DIM_TILE)
    is_there = t < end
    if keep is not None:
        is_there = tl.load(keep + t, mask=is_there, other=0) != 0
    pointers = k + t[:, None].to(tl.int64) * k_strides[2] + d[None, :] * k_strides[3]
    x = tl.load(pointers, mask=is_there[:, None] & (d[None, :] < DIM), other=0.0).to(tl.float32)
    return x, tl.maximum(tl.sqrt(tl.sum(x * x, axis=1)), 1.0e-12), is_there
