"""How the attention of one model runs, and what its layers know of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import torch

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.integrations.transformers.stats import Recorder
from psa_triton.models import QWEN2_5_VL
from psa_triton.presets import resolve

MIN_KEY_BLOCKS: Final = 3
"""A sequence of fewer key blocks than this runs dense: the first block and those on the diagonal leave no choice.

Nor do they leave much error: it grows with the number of blocks (`benchmarks/few_blocks.py`).
"""


@dataclass(frozen=True)
class Settings:
    """How the attention of one model runs.

    Raises:
        TypeError: if `config` is no configuration.
        ValueError: if the configuration has no causal form.
    """

    config: PSAConfig | None
    """None runs everything dense."""
    impl: Impl = "auto"
    """Implementation of the operator, as in `psa_attention`."""
    min_tokens: int | None = None
    """Sequences of fewer keys run dense; None for `MIN_KEY_BLOCKS` key blocks."""
    dense_layers: Collection[int] = ()
    """Indexes of the text layers that run dense."""

    def __post_init__(self) -> None:
        if self.config is not None:
            check_causal(self.config)

    def least_tokens(self, config: PSAConfig) -> int:
        """The fewest keys that run sparse with `config`."""
        return MIN_KEY_BLOCKS * config.block_n if self.min_tokens is None else self.min_tokens


@dataclass(frozen=True, eq=False)
class AttachedLayer:
    """What `apply_psa` leaves at an attention layer."""

    part: str
    """`text`, or `other` for the layers of a vision tower and the like."""
    layer: int
    """Index in the part."""
    settings: Settings
    """Of the model."""
    recorder: Recorder
    """Of the model."""


def check_causal(config: Any) -> None:
    """Check that `config` can go with a causal mask.

    Raises:
        TypeError: if it is no configuration.
        ValueError: if it reorders tokens by their content, or keeps to the limits of an implementation without masks.
    """
    if not isinstance(config, PSAConfig):
        raise TypeError(f"psa_config: expected a PSAConfig, got {type(config).__name__}")
    if config.use_rearrange and config.rearrange_method == "SemanticAware":
        raise ValueError(
            "rearrange_method: a causal mask needs tokens in their own order, got 'SemanticAware'; "
            "use config.replace(use_rearrange=False)"
        )
    if config.attn_impl == "new_mask_type":
        raise ValueError("attn_impl: 'new_mask_type' has no causal mask; use config.replace(attn_impl='auto')")


_default: list[Settings] = []


def default_settings() -> Settings:
    """Of models that name `psa` without `apply_psa`: the paper's for understanding. Read at the first call."""
    _read_default()
    return _default[0]


@torch.compiler.assume_constant_result  # done while a graph is traced, and no part of it
def _read_default() -> bool:
    if not _default:
        _default.append(Settings(resolve(section=QWEN2_5_VL.preset_section).config))
    return True
