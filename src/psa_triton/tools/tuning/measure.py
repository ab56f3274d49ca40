"""What budgets cost and leave of error in one attention call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.importance import estimation_cost
from psa_triton.levels import levels_of, read_density
from psa_triton.tools.inspection import AttentionInputs
from psa_triton.tools.inspection.exact import sample_exactly, spread_evenly
from psa_triton.tools.tuning.curve import BUDGETS, DENSE, Curve, Point, root_mean_square


@torch.no_grad()
def measure_curve(
    inputs: AttentionInputs,
    config: PSAConfig,
    *,
    budgets: Sequence[float] = BUDGETS,
    heads: int = 8,
    query_blocks: int = 16,
    impl: Impl = "auto",
) -> Curve:
    """The curve of one attention call.

    Args:
        inputs: a batch of one, with values.
        config: in budget mode; its own budget does not count.
        budgets: to try, growing; those that the importance estimate alone would use up are left out.
        heads: to compute exact attention of, spread evenly; all if there are fewer.
        query_blocks: likewise.
        impl: implementation of the operator.

    Returns:
        Costs are means over all heads, errors root mean squares over the sampled ones.
    """
    for_q, for_k = inputs.orders(config)
    assert inputs.v is not None
    q, k, v = for_q.apply(inputs.q), for_k.apply(inputs.k), for_k.apply(inputs.v)
    chosen = list(spread_evenly(q.shape[1], heads))
    key_heads = [head // (q.shape[1] // k.shape[1]) for head in chosen]
    estimate = estimation_cost(config.importance, config.block_m, config.block_n)
    curve = []
    for budget in (budget for budget in budgets if budget > estimate):
        levels = levels_of(
            q,
            k,
            v,
            config.replace(budget=budget, budget_table=()),
            prefix_tokens=inputs.prefix_tokens,
            is_causal=inputs.is_causal,
            impl=impl,
        )
        densities = read_density(levels, Blocks.of(q, k, config.block_m, config.block_n, inputs.is_causal))
        sample = sample_exactly(
            q[:, chosen],
            k[:, key_heads],
            v[:, key_heads],
            levels[:, chosen],
            config,
            query_blocks=query_blocks,
            is_causal=inputs.is_causal,
            impl=impl,
        )
        assert sample.errors is not None
        curve.append(Point(budget, float(densities.mean()) + estimate, root_mean_square(sample.errors)))
    return (*curve, DENSE)
