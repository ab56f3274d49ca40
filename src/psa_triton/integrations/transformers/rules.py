"""When attention runs dense though a model names `psa`, and the reason that the statistics give."""

from __future__ import annotations

from typing import Any, Final

import torch

from psa_triton.config import PSAConfig
from psa_triton.inputs import DTYPES
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.transformers.call import AttentionCall
from psa_triton.integrations.transformers.stats import DECODE
from psa_triton.models import QWEN2_5_VL
from psa_triton.presets import resolve

_EXTRAS: Final = {
    "sliding_window": "sliding window",
    "softcap": "softcap",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "position bias",
    "cache": "paged cache",
    "indices": "keys chosen by the model",
    "block_indices": "keys chosen by the model",
}
"""Arguments of an attention call that PSA has no equivalent of, with the reason they give."""


def dense_reason(
    call: AttentionCall, config: PSAConfig | None, rules: DenseRules, layer: int | None = None
) -> str | None:
    """Why a call runs dense; None if it runs sparse.

    Args:
        call: what is attended to.
        config: of this call; None for a dense preset.
        rules: of the model.
        layer: index among the text layers; None for other layers, and where it is not known.
    """
    if not call.is_causal:
        return "not causal"
    if call.queries == 1:
        return DECODE
    if (reason := rules.of_layer(layer, config)) is not None or config is None:
        return reason
    for name, reason in _EXTRAS.items():
        if call.has(name):
            return reason
    if call.masked_by_model:
        return "eager attention only"
    if call.mask is not None:
        return "attention mask"
    if call.dropout:
        return "dropout"
    if call.value.shape[-1] != call.key.shape[-1]:
        return "heads of keys and values differ in size"
    if call.query.shape[-1] % 8:
        return "head size is no multiple of 8"
    if call.query.dtype not in DTYPES or call.key.dtype != call.query.dtype:
        return "dtype"
    if call.queries > call.keys:
        return "more queries than keys"
    reason = rules.of_length(call.keys, config, call.query.device, call.query.dtype)
    if reason is None and call.queries < config.block_m:
        return f"fewer than {config.block_m} queries"
    return reason


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
