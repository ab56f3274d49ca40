"""The attention function that transformers calls for `attn_implementation="psa"`."""

from __future__ import annotations

import logging
from typing import Any, Final

import torch
from torch import Tensor, nn

from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.importance import estimation_cost
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.transformers.call import AttentionCall
from psa_triton.integrations.transformers.dense import attend_dense
from psa_triton.integrations.transformers.masks import filled_keys
from psa_triton.integrations.transformers.rules import dense_reason
from psa_triton.integrations.transformers.settings import AttachedLayer, check_causal, default_rules
from psa_triton.integrations.transformers.stats import DECODE, CallKey
from psa_triton.levels import read_density

logger = logging.getLogger("psa_triton")

LAYER_ATTRIBUTE: Final = "psa_layer"
"""Where `apply_psa` leaves its `AttachedLayer` at an attention module."""


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
    key, value, attention_mask, key_mask = filled_keys(key, value, attention_mask)
    call = AttentionCall(module, query, key, value, attention_mask, key_mask, dropout, scaling, causal, extras)
    layer: AttachedLayer | None = getattr(module, LAYER_ATTRIBUTE, None)
    if layer is None:
        rules = default_rules()
        return _attend(call, psa_config or rules.config, rules), None
    if torch.compiler.is_compiling() and call.queries == 1:
        # Decoding may be compiled to one graph, which cannot count.
        return attend_dense(call), None
    return _attend_and_record(call, psa_config or layer.rules.config, layer), None


def _attend(call: AttentionCall, config: PSAConfig | None, rules: DenseRules) -> Tensor:
    if config is None or dense_reason(call, config, rules) is not None:
        return attend_dense(call)
    return _attend_sparse(call, config, rules.impl)[0]


@torch.compiler.disable
def _attend_and_record(call: AttentionCall, config: PSAConfig | None, layer: AttachedLayer) -> Tensor:
    reason = dense_reason(call, config, layer.rules, layer.layer if layer.part == "text" else None)
    density: Tensor | float = 1.0
    cost, device = 0.0, call.query.device
    started = layer.recorder.clock(device)
    if config is None or reason is not None:
        out = attend_dense(call)
        seconds = layer.recorder.clock(device) - started
    else:
        out, levels = _attend_sparse(call, config, layer.rules.impl)
        seconds = layer.recorder.clock(device) - started
        density = _density(call, config, levels)
        cost = estimation_cost(config.importance, config.block_m, config.block_n)
    keys = None if reason == DECODE else call.keys
    key = CallKey(layer.part, layer.layer, call.queries, keys, reason)
    layer.recorder.add(key, call.work, density, seconds, cost)
    if config is not None and config.verbose and reason is None:
        logger.info(
            "layer %d: %d queries, %d keys, density %.3f, %.4f s",
            *(layer.layer, call.queries, call.keys, float(density), seconds),
        )
    return out


def _attend_sparse(call: AttentionCall, config: PSAConfig, impl: Impl) -> tuple[Tensor, Tensor]:
    """`[B, Nq, Hq, D]`, and the levels, int8 `[B, Hq, nq, nk]`."""
    out, levels = sparse_attention(
        call.query, call.key, call.value, config, is_causal=True, key_mask=call.key_mask, scale=call.scaling, impl=impl
    )
    return out.transpose(1, 2).contiguous(), levels


def _density(call: AttentionCall, config: PSAConfig, levels: Tensor) -> Tensor:
    blocks = Blocks(config.block_m, config.block_n, call.queries, call.keys, is_causal=True, key_mask=call.key_mask)
    return read_density(levels, blocks).mean()
