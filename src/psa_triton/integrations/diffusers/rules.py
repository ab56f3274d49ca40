"""When attention runs dense though PSA is attached, and the reason that the statistics give."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from psa_triton.config import PSAConfig

MIN_KEY_BLOCKS = 2
"""A sequence of fewer key blocks than this runs dense: with a single block there is nothing to choose from."""


@dataclass(frozen=True)
class DenseRules:
    """Which forwards and which layers run dense.

    Args:
        config: of the attention, with its warm-up; None runs everything dense.
        min_tokens: shorter sequences run dense; None for `MIN_KEY_BLOCKS` key blocks.
        last_steps: number of denoising steps at the end that run dense.
        layers: indexes of the transformer blocks that run dense.
    """

    config: PSAConfig | None
    min_tokens: int | None = None
    last_steps: int = 0
    layers: Collection[int] = ()

    @property
    def need_steps(self) -> bool:
        """Whether the denoising step matters."""
        return self.config is not None and (self.config.warmup_steps > 0 or self.last_steps > 0)

    def check(self, layers: int) -> None:
        """Check against a transformer of so many `layers`.

        Raises:
            ValueError: if a number is out of its range.
        """
        if self.last_steps < 0:
            raise ValueError(f"dense_last_steps: expected 0 or more, got {self.last_steps}")
        unknown = sorted(layer for layer in self.layers if not 0 <= layer < layers)
        if unknown:
            raise ValueError(f"dense_layers: expected indexes from 0 to {layers - 1}, got {unknown}")

    def of_forward(self, step: int | None, steps: int, tokens: int, masked: bool) -> str | None:
        """Why a whole forward over `tokens` at `step` of `steps` runs dense; None if it does not."""
        if self.config is None:
            return "dense preset"
        if masked:
            return "attention mask"
        least = MIN_KEY_BLOCKS * self.config.block_n if self.min_tokens is None else self.min_tokens
        if tokens < least:
            return f"fewer than {least} tokens"
        if step is not None and step < self.config.warmup_steps:
            return "warm-up"
        if step is not None and step >= steps - self.last_steps:
            return "last steps"
        return None

    def of_layer(self, layer: int) -> str | None:
        """Why `layer` runs dense in every forward; None if it does not."""
        return "dense layer" if layer in self.layers else None
