"""How the attention of one model runs, and what its layers know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder
from psa_triton.integrations.transformers.stats import CallKey, PSAStats
from psa_triton.models import QWEN2_5_VL
from psa_triton.presets import resolve


@dataclass(frozen=True)
class Settings:
    """How the attention of one model runs.

    Raises:
        TypeError: if the configuration is none.
        ValueError: if it has no causal form.
    """

    rules: DenseRules
    """The attention, and what runs dense."""
    impl: Impl = "auto"
    """Implementation of the operator, as in `psa_attention`."""

    def __post_init__(self) -> None:
        if self.rules.config is not None:
            check_causal(self.rules.config)


@dataclass(frozen=True, eq=False)
class AttachedLayer:
    """What `apply_psa` leaves at an attention layer."""

    part: str
    """`text`, or `other` for the layers of a vision tower and the like."""
    layer: int
    """Index in the part."""
    settings: Settings
    """Of the model."""
    recorder: Recorder[CallKey, PSAStats]
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
        _default.append(Settings(DenseRules(kind="language", config=resolve(section=QWEN2_5_VL.preset_section).config)))
    return True
