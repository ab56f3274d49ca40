"""The attention function that transformers calls for `attn_implementation="psa"`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils.logging import warning_once

from psa_triton.config import PSAConfig
from psa_triton.integrations.attend import Layout, attend_in_order
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder, Tally
from psa_triton.integrations.transformers.call import AttentionCall
from psa_triton.integrations.transformers.masks import PADDING, filled_keys, psa_mask
from psa_triton.integrations.transformers.rules import check_causal, default_rules, dense_reason
from psa_triton.integrations.transformers.stats import DECODE, CallKey, PSAStats

logger = logging.getLogger("psa_triton")

NAME: Final = "psa"
"""For `from_pretrained(..., attn_implementation=...)` and `model.set_attn_implementation(...)`."""
LAYER_ATTRIBUTE: Final = "psa_layer"
"""Where `apply_psa` leaves its `AttachedLayer` at an attention module."""


def register() -> None:
    """Make `attn_implementation="psa"` valid. Again is fine; importing this package does it."""
    AttentionInterface.register(NAME, psa_attention_forward)
    AttentionMaskInterface.register(NAME, psa_mask)


@dataclass(frozen=True, eq=False)
class AttachedLayer:
    """What `apply_psa` leaves at an attention layer."""

    part: str
    """`text`, or `other` for the layers of a vision tower and the like."""
    layer: int
    """Index in the part."""
    rules: DenseRules
    """The attention of the model, and what runs dense."""
    recorder: Recorder[PSAStats]
    """Of the model."""


def psa_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    psa_config: PSAConfig | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers' `AttentionInterface` asks for it.

    Causal prefill runs PSA, whole or in chunks, padded or not; everything else runs dense, and `dense_reason` says why.

    Args:
        module: the attention layer; it runs as `apply_psa` said, else by `default_rules`.
        query: `[B, Hq, Nq, D]`.
        key, value: `[B, Hkv, Nk, D]`, those in the cache included; query head `h` reads key head `h // (Hq // Hkv)`.
        attention_mask: as `psa_mask` makes it.
        dropout: probability.
        scaling: factor of the logits.
        is_causal: whether queries see no later key; None: as the module says, which by default is yes.
        psa_config: replaces the model's configuration in this call: `model(..., psa_config=...)`.
        extras: what the model passes besides.

    Returns:
        `[B, Nq, Hq, D]`, and None in place of the weights.

    Raises:
        TypeError: `psa_config` is no configuration.
        ValueError: `psa_config` has no causal form.
    """
    if psa_config is not None:
        check_causal(psa_config)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None and attention_mask.dtype == PADDING:
        causal = True
    key, value, attention_mask, key_mask = filled_keys(key, value, attention_mask)
    if (bias := extras.get("position_bias")) is not None:
        extras["position_bias"] = bias[..., : key.shape[2]]
    call = AttentionCall(module, query, key, value, attention_mask, key_mask, dropout, scaling, causal, extras)
    layer: AttachedLayer | None = getattr(module, LAYER_ATTRIBUTE, None)
    if layer is None:
        rules = default_rules()
        return _attend(call, psa_config or rules.config, rules)[0], None
    if torch.compiler.is_compiling() and call.queries == 1:
        # Decoding may be compiled to one graph, which cannot count.
        return call.attend_dense(), None
    return _attend_and_record(call, psa_config or layer.rules.config, layer), None


def _attend(
    call: AttentionCall, config: PSAConfig | None, rules: DenseRules, layer: int | None = None
) -> tuple[Tensor, Tally, str | None]:
    """`[B, Nq, Hq, D]`, what was read, and why the call ran dense; None if it did not."""
    reason = dense_reason(call, config, rules, layer)
    if config is None or reason is not None:
        return call.attend_dense(), Tally(), reason
    if call.extras.get("output_attentions"):
        warning_once(logger, "output_attentions: `psa` computes no attention weights; take `eager` attention for them")
    layout = Layout(key_mask=call.key_mask, is_causal=True)
    answer = attend_in_order(call.query, call.key, call.value, config, layout, scale=call.scaling, impl=rules.impl)
    return answer.out.transpose(1, 2).contiguous(), answer.tally, None


@torch.compiler.disable
def _attend_and_record(call: AttentionCall, config: PSAConfig | None, layer: AttachedLayer) -> Tensor:
    recorder, device = layer.recorder, call.query.device
    started = recorder.clock(device)
    out, tally, reason = _attend(call, config, layer.rules, layer.layer if layer.part == "text" else None)
    seconds = recorder.clock(device) - started
    keys = None if reason == DECODE else call.keys
    recorder.add(
        CallKey(layer.part, layer.layer, call.queries, keys, reason is None, reason), call.work, tally, seconds
    )
    if config is not None and config.verbose and reason is None:
        logger.info(
            "layer %d: %d queries, %d keys, density %.3f, %.4f s",
            *(layer.layer, call.queries, call.keys, float(tally.density), seconds),
        )
    return out
