"""From how many tokens on sparse attention takes less time than dense attention, by what the processor can do.

The whole operator takes `(density * row + overhead / tokens) * (1 + 32 / block_m)` of the time of torch's dense
attention: what it reads, at the rate of gathered rows, and what it costs to choose and to gather them, which grows with
the tokens where dense attention grows with their square. Small query blocks share a gathered row among fewer queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import torch

from psa_triton.config import PSAConfig
from psa_triton.kernels.gathered.ways import products_outrun_attention
from psa_triton.products import has_tiles

_SHARED: Final = 32
"""Queries of a block that a gathered row costs as much as."""
_BUDGET: Final = 1.6
"""Times the overhead: the errors of every level are estimated, too."""


@dataclass(frozen=True)
class Cost:
    """Of sparse attention, in units of the dense attention of the same processor and dtype."""

    row: float
    """Of reading all keys, gathered."""
    overhead: float
    """Tokens at which all the rest takes as long as dense attention."""


PLAIN: Final = Cost(row=1.3, overhead=660)
"""Rows are read at about the rate of dense attention."""
NARROW_PRODUCTS: Final = Cost(row=0.85, overhead=420)
"""bfloat16 with instructions for it, which torch's dense attention makes little of."""
TILES: Final = Cost(row=2.5, overhead=2800)
"""bfloat16 with AMX, of which torch's dense attention makes the most."""
BESIDE_TILES: Final = Cost(row=1.3, overhead=1000)
"""Other types on such a processor."""
SLOW_DENSE: Final = Cost(row=0.9, overhead=380)
"""float16, which is computed in float32 here and in torch's dense attention is not."""


def break_even(
    config: PSAConfig, dtype: torch.dtype, device: str, *, is_causal: bool = False, prefix_tokens: int = 0
) -> float:
    """The fewest tokens on which `config` is faster than dense attention; inf if it never is.

    Only CPUs have been measured (`benchmarks/break_even.py`): elsewhere 0.

    Args:
        config: of the attention.
        dtype: of q, k and v.
        device: its type, such as `cpu`.
        is_causal: whether there is a causal mask, which halves the time of dense attention and of what is read.
        prefix_tokens: that are read, and read, in full.
    """
    if device != "cpu":
        return 0
    cost, small = _cost(dtype), 1 + _SHARED / config.block_m
    spared = 1 - typical_density(config) * cost.row * small
    if spared <= 0:
        return math.inf
    overhead = cost.overhead * (2 if is_causal else 1) * (_BUDGET if config.mask_mode == "budget" else 1)
    overhead += 2 * prefix_tokens * cost.row
    return overhead * small / spared


def typical_density(config: PSAConfig) -> float:
    """What `config` reads of a sequence of middling length: shares of mass take about half as many blocks.

    Of a table it is the mean of the layers that run sparse: those with a budget of 1 are dense anyway.
    """
    if config.mask_mode == "budget":
        of_layers = [budget for row in config.budget_table for budget in row.budgets] or [config.budget]
        return fmean([budget for budget in of_layers if budget < 1] or [1.0])
    # A cap by similarity may make every level 1.
    shares = (
        (upper - lower) / (1 if config.use_sim_mask else level)
        for level, (lower, upper) in config.mask_ratios.items()
        if level
    )
    return sum(shares) / (1 if config.mask_mode == "topk" else 2)


def _cost(dtype: torch.dtype) -> Cost:
    if has_tiles():
        return TILES if dtype == torch.bfloat16 else BESIDE_TILES
    if dtype == torch.float16:
        return SLOW_DENSE
    return NARROW_PRODUCTS if products_outrun_attention(dtype) else PLAIN
