"""What is compared: shapes of models, masks of a wanted density, and the attentions that run on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from psa_triton.blocks import Blocks
from psa_triton.importance import block_importance
from psa_triton.kernels import Reading, attend
from psa_triton.levels import exempt_levels, select_levels

BLOCK_M, BLOCK_N = 128, 64
BLOCKS = dict(block_m=BLOCK_M, block_n=BLOCK_N)
DENSE = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
ESTIMATORS = ("sampled", "pooled", "antidiagonal")
PYRAMID = {1: 0.10, 2: 0.05, 8: 0.20}
"""Shares of a row's blocks that levels get in proportion; as they stand they read .15, the default preset's."""
ONE_LEVEL = {1: 1.0}

CHECKED = {1: (0.0, 0.2), 2: (0.2, 0.4), 4: (0.4, 0.6), 8: (0.6, 0.8), 0: (0.8, 1.0)}
"""Shares that put every level to the test."""

Ratios = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Shape:
    """An attention of a model; as many queries as keys."""

    name: str
    heads: int
    key_heads: int
    tokens: int
    dim: int
    is_causal: bool = False


TARGET_SHAPE = Shape("Wan 720p, 12 heads", 12, 12, 75_600, 128)
SHAPES = (
    TARGET_SHAPE,
    Shape("Wan 480p", 12, 12, 32_760, 128),
    Shape("Wan 720p, 40 heads", 40, 40, 75_600, 128),
    Shape("CogVideoX", 48, 48, 17_776, 64),
    Shape("Qwen2.5-VL prefill", 28, 4, 32_768, 128, is_causal=True),
)
SMALL_SHAPES = (Shape("small", 1, 1, 300, 32), Shape("small causal", 2, 1, 260, 32, is_causal=True))


@dataclass(frozen=True)
class Inputs:
    """Queries, keys and values of a shape, `[1, H, N, D]`, laid out as models hand them over: `[1, N, H, D]`."""

    shape: Shape
    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def device(self) -> torch.device:
        return self.q.device

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    generator = torch.Generator(device).manual_seed(shape.tokens)

    def draw(heads: int) -> Tensor:
        size = (1, shape.tokens, heads, shape.dim)
        return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype).transpose(1, 2)

    return Inputs(shape, draw(shape.heads), draw(shape.key_heads), draw(shape.key_heads))


def estimate(x: Inputs, method: str) -> Tensor:
    """Importance `[1, H, nq, nk]`."""
    return block_importance(x.q, x.k, **BLOCKS, method=method, is_causal=x.shape.is_causal)


def choose_levels(importance: Tensor, shape: Shape, ratios: Ratios) -> Tensor:
    return _exempt(select_levels(importance, ratios, mode="topk"), shape)


def whole_path(x: Inputs, method: str, ratios: Ratios) -> Tensor:
    """Importance, selection, pyramid, schedule, kernel."""
    return sparse_attention(x, choose_levels(estimate(x, method), x.shape, ratios), max(ratios))


def sparse_attention(x: Inputs, levels: Tensor, coarsest: int) -> Tensor:
    """Pyramid attention; no level is coarser than `coarsest`, so coarser ones are not pooled."""
    q, k, v = x.tensors()
    blocks = Blocks.of(q, k, BLOCKS["block_m"], BLOCKS["block_n"], x.shape.is_causal)
    out, _ = attend(q, k, v, levels, blocks, Reading(x.shape.dim**-0.5, "none", coarsest, "triton"))
    return out


def dense_attention(x: Inputs, backend: str) -> Tensor:
    """Torch's attention by one backend.

    Raises:
        RuntimeError: the backend does not take such inputs.
    """
    grouped = x.shape.heads != x.shape.key_heads
    with sdpa_kernel(DENSE[backend]):
        return F.scaled_dot_product_attention(*x.tensors(), is_causal=x.shape.is_causal, enable_gqa=grouped)


def read_share(levels: Tensor, shape: Shape) -> float:
    """Groups read over keys visible, counted in whole blocks: the share of dense attention's work that is left."""
    visible = _exempt(torch.ones_like(levels), shape)
    read = levels.float().reciprocal_().masked_fill_(levels == 0, 0.0)
    return float(read.sum(dtype=torch.float64) / visible.sum())


def ratios_of_density(importance: Tensor, shape: Shape, weights: dict[int, float], density: float) -> Ratios:
    """The shares, in proportion to `weights`, that leave `density` of dense attention's work."""
    none, everything = 0.0, 1.0 / weights[1]
    if density == 1.0:
        return _ratios(weights, everything)
    for _ in range(12):
        factor = (none + everything) / 2
        share = read_share(choose_levels(importance, shape, _ratios(weights, factor)), shape)
        none, everything = (factor, everything) if share < density else (none, factor)
    return _ratios(weights, everything)


def _ratios(weights: dict[int, float], factor: float) -> Ratios:
    """`weights` times `factor` as far as there is room, and level 0 for the rest."""
    ratios, start = {}, 0.0
    for level, weight in weights.items():
        end = min(start + weight * factor, 1.0)
        ratios[level] = (start, end)
        start = end
    return ratios | {0: (start, 1.0)}


def _exempt(levels: Tensor, shape: Shape) -> Tensor:
    if not shape.is_causal:
        return levels
    blocks = Blocks(BLOCKS["block_m"], BLOCKS["block_n"], shape.tokens, shape.tokens, is_causal=True)
    return exempt_levels(levels, blocks)
