"""The whole choice of levels, which has no gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.impl import Impl, resolve_impl
from psa_triton.importance import estimate_importance, estimation_cost
from psa_triton.inputs import resolve_scale
from psa_triton.levels.budget import budget_levels, expected_errors, ladder
from psa_triton.levels.exemptions import exempt_levels, serve_first_queries
from psa_triton.levels.selection import select_levels
from psa_triton.levels.similarity import cap_levels, similarity_caps
from psa_triton.operators import each_item, operator

if TYPE_CHECKING:
    from psa_triton.config import PSAConfig


def coarsest_level(config: PSAConfig) -> int:
    """No level that `config` chooses is coarser than this."""
    return ladder(config.block_n)[1] if config.mask_mode == "budget" else max(1, *config.mask_ratios)


def choose_levels(
    importance: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    blocks: Blocks,
    config: PSAConfig,
    *,
    scale: float,
    impl: Impl,
) -> Tensor:
    """Selection, similarity cap, exemptions: int8 `[B, Hq, nq, nk]`. One operator in a graph.

    An item of a batch gets the levels that it would get alone.

    Args:
        importance: float32 `[B, Hq, nq, nk]`, as from `estimate_importance`.
        q, k, v: in the order in which they are cut into blocks. A budget looks at values, and no other mode.
        blocks: `config`'s. Those that a key mask leaves out are level 0, and no part of the number of blocks that
            shares are shares of.
        config: how levels are chosen.
        scale: of the logits.
        impl: as `resolve_impl` resolved it.

    Raises:
        ValueError: a budget that the estimate of importance alone uses up.
    """
    if config.mask_mode == "budget":
        _level_budget(config)
        if v is None:
            raise ValueError("v: expected the values, which mask_mode 'budget' looks at, got None")
    exempt = [[edge for pair in ranges for edge in pair] for ranges in (blocks.exempt_queries, blocks.exempt_keys)]
    return _choose(importance, q, k, v, blocks.key_mask, config.text, blocks.is_causal, *exempt, scale, impl)


def levels_of(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    config: PSAConfig,
    *,
    scale: float | None = None,
    impl: Impl = "auto",
    **of_blocks: Any,
) -> Tensor:
    """The levels that `psa_attention` chooses for tokens that are in order already; masks and such as `Blocks` has."""
    blocks = Blocks.of(q, k, config.block_m, config.block_n, **of_blocks)
    scale, impl = resolve_scale(scale, q.shape[-1]), resolve_impl(impl, q)
    importance = estimate_importance(q, k, blocks, config.importance, scale=scale, impl=impl)
    return choose_levels(importance, q, k, v, blocks, config, scale=scale, impl=impl)


def _level_budget(config: PSAConfig) -> float:
    """What the budget leaves for levels, once importance is estimated."""
    cost = estimation_cost(config.importance, config.block_m, config.block_n)
    if config.budget <= cost:
        raise ValueError(
            f"budget: expected more than {cost:.4f}, what importance {config.importance!r} alone costs for blocks of "
            f"{config.block_m} queries, got {config.budget}; raise it, or use importance: representative"
        )
    return config.budget - cost


@operator("choose_levels", lambda importance, *_others: torch.empty_like(importance, dtype=torch.int8))
def _choose(
    importance: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    key_mask: Tensor | None,
    config: str,
    is_causal: bool,
    exempt_queries: list[int],
    exempt_keys: list[int],
    scale: float,
    impl: str,
) -> Tensor:
    from psa_triton.config import PSAConfig  # here, so that kernels run where pydantic is missing

    if importance.numel() == 0:
        return torch.empty_like(importance, dtype=torch.int8)
    settings = PSAConfig.from_text(config)
    exempt = [tuple(zip(edges[::2], edges[1::2], strict=True)) for edges in (exempt_queries, exempt_keys)]

    def of_item(importance: Tensor, q: Tensor, k: Tensor, v: Tensor | None, key_mask: Tensor | None) -> Tensor:
        blocks = Blocks.of(q, k, settings.block_m, settings.block_n, is_causal, key_mask, *exempt)
        return _levels(importance, q, k, v, blocks, settings, scale, cast(Impl, impl))

    # What a program of a GPU kernel computes depends on no other.
    of_items = (importance, q, k, v, key_mask)
    return of_item(*of_items) if impl == "triton" else each_item(of_item, *of_items)


def _levels(
    importance: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    blocks: Blocks,
    config: PSAConfig,
    scale: float,
    impl: Impl,
) -> Tensor:
    first = config.keep_first_block
    if config.mask_mode == "budget":
        assert v is not None
        errors, budget = expected_errors(q, k, v, blocks, scale=scale, impl=impl), _level_budget(config)
        levels = budget_levels(
            importance, errors, blocks, budget, keep_first_block=first, scope=config.budget_scope, impl=impl
        )
    else:
        key_blocks = None
        if (kept := blocks.kept()) is not None:
            # Behind blocks of importance 0 that have a key.
            importance = importance.masked_fill((kept == 0)[:, None, None], -1)
            key_blocks = (kept > 0).sum(-1)
        levels = select_levels(
            importance,
            config.mask_ratios,
            mode=config.mask_mode,
            min_full_ratio=config.min_full_ratio,
            key_blocks=key_blocks,
            impl=impl,
        )
    if config.use_sim_mask:
        levels = cap_levels(levels, similarity_caps(k, blocks.n, config.sim_thresholds, blocks.key_mask, impl=impl))
    levels = exempt_levels(levels, blocks, keep_first_block=first)
    if blocks.is_causal:
        serve_first_queries(levels, blocks)
    return levels
