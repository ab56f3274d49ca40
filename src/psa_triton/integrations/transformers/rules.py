"""When attention runs dense though a model names `psa`, and the reason that the statistics give."""

from __future__ import annotations

from typing import Final

from psa_triton.config import PSAConfig
from psa_triton.inputs import DTYPES
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.transformers.call import AttentionCall
from psa_triton.integrations.transformers.stats import DECODE

_EXTRAS: Final = {
    "sliding_window": "sliding window",
    "softcap": "softcap",
    "s_aux": "attention sinks",
    "position_bias": "position bias",
    "cache": "paged cache",
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
    if config is None:
        return "dense preset"
    if (reason := rules.of_layer(layer, config)) is not None:
        return reason
    for name, reason in _EXTRAS.items():
        if call.extras.get(name) is not None:
            return reason
    if call.mask is not None:
        return "attention mask"
    if call.dropout:
        return "dropout"
    return _unsupported(call) or _too_short(call, config, rules)


def _unsupported(call: AttentionCall) -> str | None:
    if call.value.shape[-1] != call.key.shape[-1]:
        return "heads of keys and values differ in size"
    if call.query.shape[-1] % 8:
        return "head size is no multiple of 8"
    if call.query.dtype not in DTYPES or call.key.dtype != call.query.dtype:
        return "dtype"
    if call.queries > call.keys:
        return "more queries than keys"
    return None


def _too_short(call: AttentionCall, config: PSAConfig, rules: DenseRules) -> str | None:
    reason = rules.of_length(call.keys, config, call.query.device, call.query.dtype)
    if reason is None and call.queries < config.block_m:
        return f"fewer than {config.block_m} queries"
    return reason
