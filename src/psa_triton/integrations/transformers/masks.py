"""Masks for `psa`: what can be said without a tensor of queries times keys is said without one."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MODEL_MAPPING
from transformers.masking_utils import eager_mask, sdpa_mask

PADDING: Final = torch.uint16
"""Of masks that tell which keys are padding, and are otherwise causal."""


def psa_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    config: Any = None,
    **settings: Any,
) -> Tensor | None:
    """The mask of a forward, as transformers' `AttentionMaskInterface` asks for it.

    Where it is nothing but causal, the frontier follows from the lengths, and the attention function knows it by them:

    * None: query `i` of `Nq` sees keys up to `i + Nk - Nq`. That is a prefill on a cache without empty places; also one
      query that sees every key.
    * A view of one True, `[1, 1, Nq, n]` with `n < Nk`: the same over the first `n` keys. The others are places of a
      static cache that are empty yet.
    * `PADDING` `[B, 1, Nq, n]`, every row the same: of the first `n` keys those with 1, the others are padding. Nobody
      makes a mask of that type, and SDPA takes none of integers. A view of one is a further chunk of a prefill, causal
      even where a model says that its prompts are not.

    Everything else (windows, packed sequences, bidirectional spans) is the boolean mask that SDPA gets. Models without
    SDPA get those of eager attention, which they may add to, or take for causal by themselves.

    Args:
        q_length: Nq.
        kv_length: Nk, empty places of the cache included.
        q_offset: position of the first query. A tensor in static caches; reading it waits for the device once a
            forward, as SDPA's masks do.
        kv_offset: position of the first key.
        attention_mask: bool `[B, tokens]`, False for padding.
        local_size: of a window or chunk.
        allow_is_causal_skip: whether its `mask_function` is causal and nothing else.
        device: of the mask.
        config: of the model.
        settings: others of `sdpa_mask`: which pairs are seen, say.
    """
    has_sdpa = supports_sdpa(config)
    causal_only = has_sdpa and allow_is_causal_skip and local_size is None and kv_offset == 0
    # A graph cannot branch on what tensors hold.
    readable = not torch.compiler.is_compiling() or (attention_mask is None and not isinstance(q_offset, Tensor))
    if causal_only and readable:
        seen = int(q_offset) + q_length
        if seen <= kv_length:
            if attention_mask is not None and not _all_tokens(attention_mask, seen):
                # What a mask is too short to tell of is padding, as for SDPA.
                keep = F.pad(attention_mask, (0, max(seen - attention_mask.shape[-1], 0)))[:, None, None, :seen]
                return keep.to(PADDING).expand(-1, 1, q_length, -1)
            is_later_chunk = seen > q_length > 1
            if seen == kv_length and not is_later_chunk:
                return None
            kind = PADDING if is_later_chunk else torch.bool
            return torch.ones(1, 1, 1, 1, dtype=kind, device=device).expand(1, 1, q_length, seen)
    make_mask = sdpa_mask if has_sdpa else eager_mask
    return make_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        # With keys ahead of the last query, SDPA's None means another frontier than ours.
        allow_is_causal_skip=allow_is_causal_skip and q_length in (1, kv_length),
        device=device,
        **settings,
    )


def supports_sdpa(config: Any) -> bool:
    """Whether the models with this configuration can run on SDPA; those that transformers does not know do."""
    return _runs_on_sdpa(type(config))


@torch.compiler.assume_constant_result  # a graph cannot look for a model's class
def _runs_on_sdpa(config_class: type) -> bool:
    return getattr(MODEL_MAPPING.get(config_class, None), "_supports_sdpa", True)


def filled_keys(key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Keys, values and mask without the empty places that `psa_mask` told of, and the padding that it told of.

    A view of one True becomes a tensor of many where a model is spread over devices. Any other mask that is too short
    is left as it is, an error.

    Returns:
        Keys, values, a mask that is none of `psa_mask`'s own, and which keys are no padding, bool `[B, Nk]`.
    """
    if mask is None:
        return key, value, None, None
    filled = mask.shape[-1]
    if mask.dtype == PADDING:
        keep = None if mask.stride(-1) == 0 else mask[:, 0, 0].bool()
        return key[:, :, :filled], value[:, :, :filled], None, keep
    if filled >= key.shape[2] or not (mask.stride(-1) == 0 or mask.all()):
        return key, value, mask, None
    return key[:, :, :filled], value[:, :, :filled], None, None


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Which keys each query sees, bool `[1, 1, Nq, Nk]`; the last query sees all."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen[None, None]


def _all_tokens(attention_mask: Tensor, count: int) -> bool:
    """Whether the first `count` positions are all tokens, in every sequence of the batch."""
    return attention_mask.shape[-1] >= count and bool(attention_mask[:, :count].all())
