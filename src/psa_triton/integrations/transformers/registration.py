"""`psa` among the attention implementations that transformers knows by name."""

from __future__ import annotations

from typing import Final

from transformers import AttentionInterface, AttentionMaskInterface

from psa_triton.integrations.transformers.attention import psa_attention_forward
from psa_triton.integrations.transformers.masks import psa_mask

NAME: Final = "psa"
"""For `from_pretrained(..., attn_implementation=...)` and `model.set_attn_implementation(...)`."""


def register() -> None:
    """Make `attn_implementation="psa"` valid. Again is fine; importing this package does it."""
    AttentionInterface.register(NAME, psa_attention_forward)
    AttentionMaskInterface.register(NAME, psa_mask)
