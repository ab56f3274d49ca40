"""Queries and keys in 8 bits (`qk_dtype: int8`), for GPUs whose products of int8 are faster than those of bfloat16.

A constant added to all keys adds the same to all logits of a query, which softmax does not see: the mean key is taken
away first, and what is left of each row of the pyramid is small enough to be rounded to 255 steps of its own size
(SageAttention, arXiv 2410.02367). Values stay as they are.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from psa_triton.products import wide

STEPS: Final = 127
"""Of a row's largest number, either side of 0."""
TINY: Final = 1e-30
"""Rows with no larger number become zeros: the inverse of their step would be no float32."""


def rounded(x: Tensor) -> Tensor:
    """`x`, each row (last dimension) rounded to multiples of its largest number / 127; nan if it is not finite."""
    rows = wide(x)
    largest = rows.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > TINY, STEPS / largest, 0.0)
    steps = torch.where(largest.isfinite(), (rows * inverse).round(), torch.nan)
    return (steps * (largest * (1 / STEPS)).nan_to_num(torch.nan, torch.nan)).to(x.dtype)
