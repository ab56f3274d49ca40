"""What the layers of a model know of how their attention runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from psa_triton.config import PSAConfig
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder
from psa_triton.integrations.transformers.stats import CallKey, PSAStats
from psa_triton.models import QWEN2_5_VL
from psa_triton.presets import resolve


@dataclass(frozen=True, eq=False)
class AttachedLayer:
    """What `apply_psa` leaves at an attention layer."""

    part: str
    """`text`, or `other` for the layers of a vision tower and the like."""
    layer: int
    """Index in the part."""
    rules: DenseRules
    """The attention of the model, and what runs dense."""
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


_default: list[DenseRules] = []


def default_rules() -> DenseRules:
    """Of models that name `psa` without `apply_psa`: the paper's for understanding. Read at the first call."""
    _read_default()
    return _default[0]


@torch.compiler.assume_constant_result  # done while a graph is traced, and no part of it
def _read_default() -> bool:
    if not _default:
        _default.append(DenseRules(kind="language", config=resolve(section=QWEN2_5_VL.preset_section).config))
    return True
