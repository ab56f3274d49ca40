"""The built-in model's VAE: a linear codec with the interface that diffusers' video pipelines call.

Each 4x4x4 block of pixels (frames, height, width; RGB) is projected on the leading principal components of the
training clips. The first frame stands alone, as in Wan's causal VAE: it is read as a block of four equal frames.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput

_RGB = 3


class LinearVideoCodec(ModelMixin, ConfigMixin):
    """A linear video autoencoder: PCA of pixel blocks.

    Args:
        z_dim: latent channels.
        scale_factor_temporal: frames a block holds; the first latent frame holds one frame.
        scale_factor_spatial: height and width of a block, pixels.
        latents_mean: per-channel mean of the latents, `z_dim` numbers.
        latents_std: per-channel divisor of the latents, `z_dim` numbers.
    """

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        scale_factor_temporal: int = 4,
        scale_factor_spatial: int = 4,
        latents_mean: tuple[float, ...] = (0.0,) * 16,
        latents_std: tuple[float, ...] = (1.0,) * 16,
    ) -> None:
        super().__init__()
        width = _RGB * scale_factor_temporal * scale_factor_spatial**2
        self.basis = torch.nn.Parameter(torch.zeros(z_dim, width))
        self.center = torch.nn.Parameter(torch.zeros(width))

    def blocks(self, video: torch.Tensor) -> torch.Tensor:
        """Cut `video [B, 3, F, H, W]` in blocks: `[B, (F-1)/t + 1, H/s, W/s, 3*t*s*s]`."""
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        frames, height, width = video.shape[2:]
        if (frames - 1) % t or height % s or width % s:
            raise ValueError(
                f"video: expected 1 + a multiple of {t} frames and sides that divide by {s}, "
                f"got {frames} frames of {height}x{width}"
            )
        video = torch.cat([video[:, :, :1].expand(-1, -1, t - 1, -1, -1), video], dim=2)
        video = video.unflatten(4, (-1, s)).unflatten(3, (-1, s)).unflatten(2, (-1, t))
        return video.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Latents (not normalised) of a video in [-1, 1].

        Args:
            video: `[B, 3, F, H, W]`, F = 1 + a multiple of `scale_factor_temporal`.

        Returns:
            `[B, z_dim, (F-1)/t + 1, H/s, W/s]`.

        Raises:
            ValueError: the video does not fit whole blocks.
        """
        latents = (self.blocks(video) - self.center) @ self.basis.T
        return latents.movedim(-1, 1)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Video in [-1, 1] from latents (not normalised).

        Args:
            z: `[B, z_dim, T, h, w]`.
            return_dict: wrap the video in a `DecoderOutput`.

        Returns:
            `[B, 3, (T-1)*t + 1, h*s, w*s]`, in a `DecoderOutput` or a tuple.
        """
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        blocks = z.movedim(1, -1) @ self.basis + self.center
        video = blocks.unflatten(-1, (_RGB, t, s, s)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        video = video.flatten(6).flatten(4, 5).flatten(2, 3)[:, :, t - 1 :].clamp(-1, 1)
        return DecoderOutput(sample=video) if return_dict else (video,)
