"""One call of an attention layer, and dense attention for those that do not run sparse."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from psa_triton.integrations.transformers.masks import causal_mask, supports_sdpa


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What a layer is asked to attend to, without empty places of a cache."""

    module: nn.Module
    """The attention layer."""
    query: Tensor
    """`[B, Hq, Nq, D]`."""
    key: Tensor
    """`[B, Hkv, Nk, D]`."""
    value: Tensor
    """`[B, Hkv, Nk, Dv]`."""
    mask: Tensor | None
    """Boolean or to be added, `[B, 1, Nq, Nk]`; None: nothing but what `is_causal` and `key_mask` say."""
    key_mask: Tensor | None
    """bool `[B, Nk]`, False for padding, beside a causal mask; None without padding."""
    dropout: float
    """Probability."""
    scaling: float | None
    """Factor of the logits; None for `D ** -0.5`."""
    is_causal: bool
    """Query `i` sees keys up to `i + Nk - Nq`."""
    extras: dict[str, Any]
    """What the model passes besides."""

    @property
    def queries(self) -> int:
        """Nq."""
        return self.query.shape[2]

    @property
    def keys(self) -> int:
        """Nk."""
        return self.key.shape[2]

    @property
    def work(self) -> int:
        """Pairs of a query and a key that it sees, padding counted."""
        unseen = self.queries * (self.queries - 1) // 2 if self.is_causal else 0
        return self.queries * self.keys - unseen

    def attend_dense(self) -> Tensor:
        """Attention by SDPA, as transformers calls it, or by the model's own where SDPA cannot do it.

        Returns:
            `[B, Nq, Hq, Dv]`.

        Raises:
            ValueError: the layer wants what SDPA cannot do, and its model has no eager attention to do it with; or it
                chose keys for a kernel of its own.
        """
        if self.has("indices", "block_indices"):
            raise ValueError(
                f"attn_implementation: 'psa' cannot read the keys that {type(self.module).__name__} chose for a kernel "
                "of its own; use 'sdpa' or 'eager', under which it masks the others"
            )
        is_eager = self.masked_by_model or self.has("softcap", "s_aux", "sinks")
        mask = self.mask
        if self.key_mask is not None:
            mask = self.key_mask[:, None, None] & self._causal_mask()
        elif (
            mask is None and self.is_causal and not self.masked_by_model and (is_eager or 1 < self.queries < self.keys)
        ):
            # SDPA's own frontier starts at the first key.
            mask = self._causal_mask()
        options = {"dropout": self.dropout, "scaling": self.scaling, **self.extras}
        if is_eager:
            attend, mask = self._eager_attention(), _added(mask, self.query.dtype)
            options["scaling"] = self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        else:
            attend = sdpa_attention_forward
            options["is_causal"] = self.is_causal
        return attend(self.module, self.query, self.key, self.value, mask, **options)[0]

    @property
    def masked_by_model(self) -> bool:
        """Whether the model has eager attention alone, for which it makes its masks itself."""
        return not supports_sdpa(getattr(self.module, "config", None))

    def has(self, *extras: str) -> bool:
        """Whether the model passes one of these arguments besides."""
        return any(self.extras.get(name) is not None for name in extras)

    def _causal_mask(self) -> Tensor:
        return causal_mask(self.queries, self.keys, self.query.device)

    def _eager_attention(self) -> Any:
        """The function that the model runs for `attn_implementation="eager"`."""
        for base in type(self.module).__mro__:
            if eager := getattr(sys.modules.get(base.__module__), "eager_attention_forward", None):
                return eager
        raise ValueError(
            f"attn_implementation: 'psa' leaves softcaps and attention sinks to a model's eager attention, and "
            f"{type(self.module).__module__} has none"
        )


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask in the form that is added to the logits."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
