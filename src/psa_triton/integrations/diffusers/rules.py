"""When attention runs dense though PSA is attached, and the reason that the statistics give."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from psa_triton.config import PSAConfig

MIN_KEY_BLOCKS = 8
"""A sequence of fewer key blocks than this runs dense.

From eight on the presets are about as close to dense attention as on long sequences; of two to six blocks the cheaper
ones lose half of the output or more, since one block is all that they read (`benchmarks/few_blocks.py`).
"""

BREAK_EVEN = {"cpu": 1024}
"""Tokens from which on PSA takes less time than dense attention, by type of device (`benchmarks/break_even.py`).

On a CPU the shipped presets of Wan are 1.3 to 3 times as fast there, those of CogVideoX (smaller heads, and text that
is read in full) about as fast; the built-in model's, with blocks of 32 queries and a density above a half, needs four
times as many. No GPU has been measured yet: there `MIN_KEY_BLOCKS` alone decides.
"""


@dataclass(frozen=True)
class DenseRules:
    """Which forwards and which layers run dense.

    Args:
        config: of the attention, with its warm-up; None runs everything dense.
        min_tokens: shorter sequences run dense; None for `MIN_KEY_BLOCKS` key blocks and the device's `BREAK_EVEN`.
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
        if self.config is None:
            return False
        return self.config.warmup_steps > 0 or self.last_steps > 0 or len(self.config.budget_table) > 1

    def check(self, layers: int) -> None:
        """Check against a transformer of so many `layers`.

        Raises:
            ValueError: if a number is out of its range.
        """
        unknown = sorted(layer for layer in self.layers if not 0 <= layer < layers)
        if unknown:
            raise ValueError(f"dense_layers: expected indexes from 0 to {layers - 1}, got {unknown}")
        table = () if self.config is None else self.config.budget_table
        if table and len(table[0].budgets) != layers:
            raise ValueError(
                f"budget_table: expected {layers} budgets in each row, one for each transformer block, "
                f"got {len(table[0].budgets)}; `psa tune` makes a table for this model"
            )

    def of_forward(self, step: int | None, steps: int, tokens: int, device: str, masked: bool) -> str | None:
        """Why a whole forward over `tokens` at `step` of `steps` runs dense; None if it does not.

        `device` is a type of device, such as `cpu`.
        """
        if self.config is None:
            return "dense preset"
        if masked:
            return "attention mask"
        least = self.min_tokens
        if least is None:
            least = max(MIN_KEY_BLOCKS * self.config.block_n, BREAK_EVEN.get(device, 0))
        if tokens < least:
            return f"fewer than {least} tokens"
        if step is not None and step < self.config.warmup_steps:
            return "warm-up"
        if step is not None and step >= steps - self.last_steps:
            return "last steps"
        return None

    def of_layer(self, layer: int, config: PSAConfig | None) -> str | None:
        """Why `layer` runs dense with `config` in a forward that does not; None if it runs sparse."""
        if layer in self.layers:
            return "dense layer"
        return "budget of 1" if config is not None and config.reads_all else None
