"""One call of an attention layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


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
