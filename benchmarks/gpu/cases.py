"""What is compared: shapes of models, masks of a wanted density, and the attentions that run on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from shares import BLOCK_SPARSE, DEFAULT, Ratios, bounds, scaled
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from psa_triton.blocks import Blocks
from psa_triton.importance import block_importance
from psa_triton.kernels import Reading, attend
from psa_triton.levels import exempt_levels, read_density, select_levels
from psa_triton.tools.shapes import AttentionShape

BLOCK_M, BLOCK_N = 128, 64
BLOCKS: Final = dict(block_m=BLOCK_M, block_n=BLOCK_N)
DENSE: Final = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
ESTIMATORS: Final = ("sampled", "pooled", "antidiagonal")
MASKS: Final = {"pyramid": DEFAULT, "levels 1/0": BLOCK_SPARSE}
CHECKED: Final = {1: (0.0, 0.2), 2: (0.2, 0.4), 4: (0.4, 0.6), 8: (0.6, 0.8), 0: (0.8, 1.0)}
"""Shares that put every level to the test."""


def _shape(name: str, heads: int, tokens: int, dim: int, **marks: Any) -> AttentionShape:
    """Of `known_shapes`, which need a presets file and so yaml, which a bare GPU machine may lack."""
    named = dict(name=name, video="", section="", heads=heads, grid=(1, 1, tokens), dim=dim)
    return AttentionShape(**{**named, "key_heads": heads, **marks})


SHAPES: Final = (
    _shape("Wan 720p, 12 heads", 12, 75_600, 128),
    _shape("Wan 480p", 12, 32_760, 128),
    _shape("Wan 720p, 40 heads", 40, 75_600, 128),
    _shape("CogVideoX", 48, 17_776, 64),
    _shape("Qwen2.5-VL prefill", 28, 32_768, 128, key_heads=4, is_causal=True),
)
SMALL_SHAPES: Final = (_shape("small", 1, 300, 32), _shape("small causal", 2, 260, 32, key_heads=1, is_causal=True))


@dataclass(frozen=True)
class Inputs:
    """Queries, keys and values of a shape, `[1, H, N, D]`, laid out as models hand them over: `[1, N, H, D]`."""

    shape: AttentionShape
    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def device(self) -> torch.device:
        return self.q.device

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v


def make_inputs(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator(device).manual_seed(shape.tokens)

    def draw(heads: int) -> Tensor:
        size = (1, shape.tokens, heads, shape.dim)
        return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype).transpose(1, 2)

    return Inputs(shape, draw(shape.heads), draw(shape.key_heads), draw(shape.key_heads))


def estimate(x: Inputs, method: str) -> Tensor:
    """Importance `[1, H, nq, nk]`."""
    return block_importance(x.q, x.k, **BLOCKS, method=method, is_causal=x.shape.is_causal)


def choose_levels(importance: Tensor, shape: AttentionShape, ratios: Ratios) -> Tensor:
    levels = select_levels(importance, ratios, mode="topk")
    if not shape.is_causal:
        return levels
    return exempt_levels(levels, _blocks(shape))


def whole_path(x: Inputs, method: str, ratios: Ratios) -> Tensor:
    """Importance, selection, pyramid, schedule, kernel."""
    return sparse_attention(x, choose_levels(estimate(x, method), x.shape, ratios), max(ratios))


def sparse_attention(x: Inputs, levels: Tensor, coarsest: int) -> Tensor:
    """Pyramid attention; no level is coarser than `coarsest`, so coarser ones are not pooled."""
    reading = Reading(x.shape.dim**-0.5, "none", coarsest, "triton")
    out, _ = attend(*x.tensors(), levels, _blocks(x.shape), reading)
    return out


def _blocks(shape: AttentionShape) -> Blocks:
    return Blocks(BLOCK_M, BLOCK_N, shape.tokens, shape.tokens, shape.is_causal)


def dense_attention(x: Inputs, backend: str) -> Tensor:
    """Torch's attention by one backend.

    Raises:
        RuntimeError: the backend does not take such inputs.
    """
    grouped = x.shape.heads != x.shape.key_heads
    with sdpa_kernel(DENSE[backend]):
        return F.scaled_dot_product_attention(*x.tensors(), is_causal=x.shape.is_causal, enable_gqa=grouped)


def read_share(levels: Tensor, shape: AttentionShape) -> float:
    """Groups read over keys visible: the share of dense attention's work that is left."""
    return float(read_density(levels, _blocks(shape)).mean())


def ratios_of_density(
    importance: Tensor, shape: AttentionShape, weights: Mapping[int, float], density: float
) -> Ratios:
    """The shares, in proportion to `weights`, that leave just `density` or more of dense attention's work."""

    def is_less(factor: float) -> bool:
        return read_share(choose_levels(importance, shape, scaled(weights, factor)), shape) < density

    return scaled(weights, bounds(is_less, 1.0 / weights[1])[1])
