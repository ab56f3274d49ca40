"""Dense attention for the calls that do not run sparse: SDPA, or the model's own where SDPA cannot do it."""

from __future__ import annotations

import dataclasses
import sys

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from psa_triton.integrations.transformers.call import AttentionCall
from psa_triton.integrations.transformers.masks import causal_mask


def attend_dense(call: AttentionCall) -> Tensor:
    """Attention by transformers' own functions, `[B, Nq, Hq, Dv]`.

    Raises:
        ValueError: the layer wants a softcap or attention sinks, and its model has no eager attention to do it with.
    """
    if call.key_mask is not None:
        mask = call.key_mask[:, None, None] & causal_mask(call.queries, call.keys, call.query.device)
        call = dataclasses.replace(call, mask=mask, key_mask=None)
    if call.extras.get("softcap") is not None or call.extras.get("s_aux") is not None:
        return _attend_eager(call)
    if call.mask is None and call.is_causal and 1 < call.queries < call.keys:
        # SDPA's own frontier starts at the first key.
        call = dataclasses.replace(call, mask=causal_mask(call.queries, call.keys, call.query.device))
    out, _ = sdpa_attention_forward(
        call.module,
        call.query,
        call.key,
        call.value,
        call.mask,
        dropout=call.dropout,
        scaling=call.scaling,
        is_causal=call.is_causal,
        **call.extras,
    )
    return out


def _attend_eager(call: AttentionCall) -> Tensor:
    """The function that the model runs for `attn_implementation="eager"`."""
    eager = getattr(sys.modules[type(call.module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise ValueError(
            f"attn_implementation: 'psa' leaves softcaps and attention sinks to a model's eager attention, and "
            f"{type(call.module).__module__} has none"
        )
    mask = call.mask
    if mask is None and call.is_causal:
        mask = causal_mask(call.queries, call.keys, call.query.device)
    if mask is not None and mask.dtype == torch.bool:
        zeros = torch.zeros(mask.shape, dtype=call.query.dtype, device=mask.device)
        mask = zeros.masked_fill_(~mask, torch.finfo(zeros.dtype).min)
    out, _ = eager(
        call.module,
        call.query,
        call.key,
        call.value,
        mask,
        dropout=call.dropout,
        scaling=call.query.shape[-1] ** -0.5 if call.scaling is None else call.scaling,
        **call.extras,
    )
    return out
