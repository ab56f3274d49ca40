"""When attention runs dense though PSA is attached, and the reason that the statistics give."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl, check_impl
from psa_triton.inputs import as_count, as_indexes
from psa_triton.integrations.break_even import break_even

Kind = Literal["diffusion", "language"]

MIN_KEY_BLOCKS: dict[Kind, int] = {"diffusion": 8, "language": 3}
"""A sequence of fewer key blocks than this runs dense.

In video models the presets are from eight on about as close to dense attention as on long sequences; of two to six
blocks the cheaper ones lose half of the output or more, since one block is all that they read. Causal language models
read the first block and those on the diagonal in full anyway (`benchmarks/few_blocks.py`).
"""


@dataclass(frozen=True, kw_only=True)
class DenseRules:
    """What runs dense in a model."""

    kind: Kind
    """Of the model."""
    config: PSAConfig | None
    """Of the attention, with its warm-up; None runs everything dense."""
    min_tokens: int | None = None
    """Shorter sequences run dense; None for `MIN_KEY_BLOCKS` key blocks and what pays."""
    impl: Impl = "auto"
    """Of the operator. One that is named runs whether it pays or not."""
    layers: Collection[int] = ()
    """Indexes of the layers that run dense."""
    last_steps: int = 0
    """Denoising steps at the end that run dense."""

    @classmethod
    def checked(
        cls, kind: Kind, config: PSAConfig | None, impl: Any, min_tokens: Any, layers: Any, last_steps: Any = 0
    ) -> Self:
        """The rules that arguments of `apply_psa` ask for.

        Raises:
            TypeError: an argument is of a wrong type.
            ValueError: an argument is out of range.
        """
        return cls(
            kind=kind,
            config=config,
            min_tokens=None if min_tokens is None else as_count("min_tokens", min_tokens),
            layers=as_indexes("dense_layers", layers),
            last_steps=as_count("dense_last_steps", last_steps),
            impl=check_impl(impl),
        )

    @property
    def need_steps(self) -> bool:
        """Whether the denoising step matters."""
        config = self.config
        if config is None:
            return False
        return bool(config.warmup_steps or self.last_steps or config.reuse or len(config.budget_table) > 1)

    def check_layers(self, known: Collection[int]) -> None:
        """Check against the indexes of a model's layers.

        Raises:
            ValueError: there is no such layer, or the budgets are for another number of layers.
        """
        if unknown := sorted(set(self.layers) - set(known)):
            last = max(known, default=-1)
            expected = f"indexes from 0 to {last}" if self.kind == "diffusion" else f"some of {sorted(known)}"
            raise ValueError(f"dense_layers: expected {expected}, got {unknown}")
        config = None if self.kind == "language" else self.config
        if config and config.reuse and (unknown := sorted(set(config.reuse.layers) - set(known))):
            raise ValueError(f"reuse.layers: expected indexes from 0 to {max(known, default=-1)}, got {unknown}")
        table = () if config is None else config.budget_table
        if table and len(table[0].budgets) != len(known):
            raise ValueError(
                f"budget_table: expected {len(known)} budgets in each row, one for each transformer block, "
                f"got {len(table[0].budgets)}; `psa tune` makes a table for this model"
            )

    def reusing(self, layers: int) -> int:
        """How many of a model's layers keep something from step to step."""
        config = self.config
        if config is None or config.reuse is None:
            return 0
        starts = [row.start for row in config.budget_table] or [0.0]
        return sum(
            config.reuse.covers(layer)
            and any(self.of_layer(layer, config.at(layer, start)) is None for start in starts)
            for layer in range(layers)
        )

    def of_step(self, step: int | None, steps: int) -> str | None:
        """Why the denoising step `step` of `steps` runs dense; None if it does not."""
        if step is None or self.config is None:
            return None
        if step < self.config.warmup_steps:
            return "warm-up"
        return "last steps" if step >= steps - self.last_steps else None

    def of_length(
        self, tokens: int, config: PSAConfig, device: torch.device, dtype: torch.dtype, prefix_tokens: int = 0
    ) -> str | None:
        """Why a sequence of `tokens` keys, read in full up to `prefix_tokens`, runs dense; None if it does not."""
        least: float = MIN_KEY_BLOCKS[self.kind] * config.block_n if self.min_tokens is None else self.min_tokens
        if tokens < least:
            return f"fewer than {least} tokens"
        if self.min_tokens is not None or self.impl != "auto":
            return None
        is_causal = self.kind == "language"
        least = break_even(config, dtype, device.type, is_causal=is_causal, prefix_tokens=prefix_tokens)
        if least == math.inf:
            return "dense is faster at this density"
        return f"dense is faster below {math.ceil(least)} tokens here" if tokens < least else None

    def of_layer(self, layer: int | None, config: PSAConfig | None) -> str | None:
        """Why a layer with this configuration of its own runs dense; None if it does not."""
        if config is None:
            return "dense preset"
        if layer in self.layers:
            return "dense layer"
        return "budget of 1" if config.reads_all else None
