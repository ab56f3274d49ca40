"""The built-in model's transformer: diffusers' Wan, with positions that do not grow with the frame.

Weights trained on one size of frame draw an object again and again on a larger one, since they meet positions that they
never saw. Here a frame is `FRAME` units high and wide whatever its number of tokens, so that more tokens are a finer
grid over the same positions (position interpolation: Chen et al. 2023, arXiv 2306.15595). Time counts latent frames,
as in Wan.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import ModelMixin, WanTransformer3DModel  # noqa: F401 - diffusers looks here for the base that loads a class

FRAME = 12
"""Height and width of a frame in rotary positions: the tokens of the smallest size trained, where this is plain Wan."""

_BASE = 10_000.0


def _angles(positions: torch.Tensor, channels: int) -> torch.Tensor:
    """Rotary angles `[len(positions), channels]`, each rate twice: neighbouring channels turn together."""
    rates = _BASE ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    return torch.outer(positions.double(), rates).repeat_interleave(2, dim=1)


class FrameRotaryEmbedding(torch.nn.Module):
    """Rotary tables of a grid of tokens, height and width measured in frames.

    Args:
        channels: of a head; time has what two thirds, rounded down to pairs, leave.
        patch: latent frames, rows and columns of a token.
    """

    def __init__(self, channels: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        side = 2 * (channels // 6)
        self.channels = (channels - 2 * side, side, side)
        self.patch = tuple(patch)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[1, N, 1, channels]`, float32, for `latents [B, C, T, h, w]`."""
        t, h, w = grid = [size // patch for size, patch in zip(latents.shape[2:], self.patch, strict=True)]
        positions = (torch.arange(t), torch.arange(h) * (FRAME / h), torch.arange(w) * (FRAME / w))
        views = ((t, 1, 1, -1), (1, h, 1, -1), (1, 1, w, -1))
        axes = [
            _angles(position, channels).view(view).expand(*grid, -1)
            for position, channels, view in zip(positions, self.channels, views, strict=True)
        ]
        angles = torch.cat(axes, dim=-1).reshape(1, t * h * w, 1, -1)
        return angles.cos().float().to(latents.device), angles.sin().float().to(latents.device)


class FrameWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` whose heights and widths are fractions of the frame; the same arguments and weights."""

    # diffusers reads the parameters of the constructor.
    @functools.wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rope = FrameRotaryEmbedding(self.config.attention_head_dim, self.config.patch_size)
