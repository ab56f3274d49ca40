"""How key blocks are read at their levels."""

from __future__ import annotations

from dataclasses import dataclass

from psa_triton.impl import Impl


@dataclass(frozen=True)
class Reading:
    """All that decides an attention's output besides its inputs, levels and blocks."""

    scale: float
    """Factor of the logits."""
    pool_correction: str
    """What is added to the logits of pooled groups, see `pyramid_attention`."""
    coarsest: int
    """No level is coarser than this: what it does not name is not pooled."""
    qk_dtype: str
    """`int8`: products of queries and keys in 8 bits, see `kernels/int8.py`; `auto`: in the inputs' own dtype."""
    impl: Impl
    """Which implementation reads; resolved."""
