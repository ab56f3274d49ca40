"""Queries and keys that attend to their surroundings, as those of video models do: density depends on that."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from psa_triton.ordering import grid_order
from psa_triton.tools.shapes import AttentionShape

_PEAK = 9.0
"""Logit of a token on itself, over that on a token far away: most of the mass lies on some hundred neighbours."""
_REACH = 0.08
"""Distance over which attention falls off, in sizes of the video."""


def local_inputs(shape: AttentionShape, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors `[1, H, N, D]` (`[1, Hkv, N, D]` for k and v), laid out as models hand them over: `[1, N, H, D]`.

    Visual tokens are in Gilbert order, as they are inside a model with PSA attached.

    Positions are mapped to random Fourier features (Rahimi and Recht 2007), whose products fall off with distance like
    a Gaussian; each head has its own. The same for the same shape every time.

    Args:
        shape: what to make.
        device: where to.
        dtype: of the result.
    """
    generator = torch.Generator().manual_seed(shape.tokens)
    place = _positions(shape)
    group = shape.heads // shape.key_heads
    amplitude = math.sqrt(_PEAK * shape.dim**0.5)
    keys = torch.stack([_features(place, shape.dim, generator) for _ in range(shape.key_heads)], dim=1)
    noise = torch.randn(shape.tokens, shape.heads, shape.dim, generator=generator) * 0.1
    q = amplitude * keys.repeat_interleave(group, dim=1) + noise
    v = torch.randn(keys.shape, generator=generator)
    tensors = (x.to(device, dtype)[None].transpose(1, 2) for x in (q, amplitude * keys, v))
    order = grid_order("Gilbert", shape.grid, tile_size=(2, 8, 8), prefix_tokens=shape.prefix_tokens, device=device)
    q, k, v = (order.apply(x) for x in tensors)
    return q, k, v


def _positions(shape: AttentionShape) -> Tensor:
    """Places of all tokens in the unit cube `[N, 3]`; text lies outside, far from everything and from itself."""
    axes = [torch.arange(size) / max(shape.grid) for size in shape.grid]
    visual = torch.cartesian_prod(*axes)
    text = 10.0 + torch.arange(shape.prefix_tokens)[:, None].expand(-1, 3)
    return torch.cat([text, visual])


def _features(place: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Unit vectors `[N, D]` whose product is about `exp(-distance^2 / (2 reach^2))`."""
    frequency = torch.randn(3, dim // 2, generator=generator) / _REACH
    angle = place @ frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1) * (2 / dim) ** 0.5
