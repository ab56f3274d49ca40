"""What budgets cost and leave of error in one attention call."""

from __future__ import annotations

from typing import Final

import torch

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.importance import estimation_cost
from psa_triton.tools.inspection.exact import sample_exactly, spread_evenly
from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.tuning.curve import BUDGETS, DENSE, Curve, Point, root_mean_square

_HEADS: Final = 8
"""Exact attention is computed of as many, spread evenly."""


@torch.no_grad()
def measure_curve(inputs: AttentionInputs, config: PSAConfig, *, query_blocks: int, impl: Impl = "auto") -> Curve:
    """The curve of one attention call, without budgets that the importance estimate alone would use up.

    Args:
        inputs: a batch of one, with values.
        config: in budget mode; its own budget does not count.
        query_blocks: to compute exact attention of, spread evenly; all if there are fewer.
        impl: implementation of the operator.

    Returns:
        Costs are means over all heads, errors root mean squares over the sampled ones.
    """
    assert inputs.v is not None
    ordered = inputs.ordered(*inputs.orders(config))
    chosen = list(spread_evenly(ordered.q.shape[1], _HEADS))
    sampled = ordered.heads(chosen)
    estimate = estimation_cost(config.importance, config.block_m, config.block_n)
    curve = []
    for budget in (budget for budget in BUDGETS if budget > estimate):
        levels = ordered.choose_levels(config.replace(budget=budget, budget_table=()), impl)
        cost = float(ordered.density(levels, config).mean()) + estimate
        sample = sample_exactly(sampled, levels[:, chosen], config, query_blocks=query_blocks, impl=impl)
        assert sample.errors is not None
        curve.append(Point(budget, cost, root_mean_square(sample.errors)))
    return (*curve, DENSE)
