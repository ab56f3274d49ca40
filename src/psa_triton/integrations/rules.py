"""When attention runs dense though PSA is attached, and the reason that the statistics give."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from psa_triton.config import PSAConfig

Kind = Literal["diffusion", "language"]

MIN_KEY_BLOCKS: dict[Kind, int] = {"diffusion": 8, "language": 3}
"""A sequence of fewer key blocks than this runs dense.

In video models the presets are from eight on about as close to dense attention as on long sequences; of two to six
blocks the cheaper ones lose half of the output or more, since one block is all that they read. Causal language models
read the first block and those on the diagonal in full anyway (`benchmarks/few_blocks.py`).
"""

BREAK_EVEN: dict[tuple[Kind, str], int] = {("diffusion", "cpu"): 1024}
"""Tokens from which on PSA takes less time than dense attention, by type of device (`benchmarks/break_even.py`).

On a CPU the shipped presets of Wan are 1.3 to 3 times as fast there, those of CogVideoX (smaller heads, and text that
is read in full) about as fast; the built-in model's, with blocks of 32 queries and a density above a half, needs four
times as many. No GPU has been measured yet: there `MIN_KEY_BLOCKS` alone decides.
"""


@dataclass(frozen=True, kw_only=True)
class DenseRules:
    """What runs dense in a model."""

    kind: Kind
    """Of the model."""
    config: PSAConfig | None
    """Of the attention, with its warm-up; None runs everything dense."""
    min_tokens: int | None = None
    """Shorter sequences run dense; None for `MIN_KEY_BLOCKS` key blocks and the device's `BREAK_EVEN`."""
    layers: Collection[int] = ()
    """Indexes of the layers that run dense."""
    last_steps: int = 0
    """Denoising steps at the end that run dense."""

    @property
    def need_steps(self) -> bool:
        """Whether the denoising step matters."""
        if self.config is None:
            return False
        return self.config.warmup_steps > 0 or self.last_steps > 0 or len(self.config.budget_table) > 1

    def check_layers(self, known: Collection[int]) -> None:
        """Check against the indexes of a model's layers.

        Raises:
            ValueError: there is no such layer, or the budgets are for another number of layers.
        """
        if unknown := sorted(set(self.layers) - set(known)):
            last = max(known, default=-1)
            expected = f"indexes from 0 to {last}" if self.kind == "diffusion" else f"some of {sorted(known)}"
            raise ValueError(f"dense_layers: expected {expected}, got {unknown}")
        table = () if self.config is None or self.kind == "language" else self.config.budget_table
        if table and len(table[0].budgets) != len(known):
            raise ValueError(
                f"budget_table: expected {len(known)} budgets in each row, one for each transformer block, "
                f"got {len(table[0].budgets)}; `psa tune` makes a table for this model"
            )

    def of_step(self, step: int | None, steps: int) -> str | None:
        """Why the denoising step `step` of `steps` runs dense; None if it does not."""
        if step is None or self.config is None:
            return None
        if step < self.config.warmup_steps:
            return "warm-up"
        return "last steps" if step >= steps - self.last_steps else None

    def of_length(self, tokens: int, config: PSAConfig, device: str) -> str | None:
        """Why a sequence of `tokens` keys runs dense on a type of device, such as `cpu`; None if it does not."""
        least = self.min_tokens
        if least is None:
            least = max(MIN_KEY_BLOCKS[self.kind] * config.block_n, BREAK_EVEN.get((self.kind, device), 0))
        return f"fewer than {least} tokens" if tokens < least else None

    def of_layer(self, layer: int | None, config: PSAConfig | None) -> str | None:
        """Why a layer with this configuration of its own runs dense; None if it does not."""
        if config is None:
            return "dense preset"
        if layer in self.layers:
            return "dense layer"
        return "budget of 1" if config.reads_all else None
