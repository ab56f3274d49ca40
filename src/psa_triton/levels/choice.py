"""The whole choice of levels, and the one operator that `torch.compile` sees of it: a choice has no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from psa_triton.blocks import block_count
from psa_triton.folding import register_folding
from psa_triton.impl import Impl, resolve_impl
from psa_triton.importance import block_importance, estimation_cost
from psa_triton.importance.rows import BlockGrid
from psa_triton.kept import kept_count
from psa_triton.levels.budget import Scope, budget_levels, expected_errors, ladder
from psa_triton.levels.exemptions import exempt_levels, serve_first_queries
from psa_triton.levels.selection import select_levels
from psa_triton.levels.similarity import cap_levels, similarity_caps


class Thresholds(NamedTuple):
    """Least similarities for levels 2, 4 and 8."""

    x2: float
    x4: float
    x8: float


@dataclass(frozen=True)
class LevelChoice:
    """How levels are chosen; `PSAConfig` describes each field."""

    block_m: int
    block_n: int
    mask_ratios: dict[int, tuple[float, float]]
    mask_mode: str
    min_full_ratio: float
    importance: str
    sim_thresholds: Thresholds | None
    """None for no cap."""
    keep_first_block: bool = False
    budget: float = 1.0
    budget_scope: Scope = "row"

    def __post_init__(self) -> None:
        if self.mask_mode == "budget" and self.level_budget <= 0:
            raise ValueError(
                f"budget: expected more than {self.budget - self.level_budget:.4f}, what importance "
                f"{self.importance!r} alone costs for blocks of {self.block_m} queries, got {self.budget}; "
                "raise it, or use importance: representative"
            )

    @property
    def level_budget(self) -> float:
        """What the budget leaves for levels, once importance is estimated."""
        return self.budget - estimation_cost(self.importance, self.block_m, self.block_n)

    @property
    def coarsest(self) -> int:
        """No level is coarser than this."""
        return ladder(self.block_n)[1] if self.mask_mode == "budget" else max(1, *self.mask_ratios)


def choose_levels(
    q: Tensor,
    k: Tensor,
    choice: LevelChoice,
    *,
    scale: float,
    v: Tensor | None = None,
    prefix_tokens: int = 0,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    impl: Impl = "auto",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Importance, selection, similarity cap, exemptions: int8 `[B, Hq, nq, nk]`.

    An item of a batch gets the levels that it would get alone.

    Args:
        q, k: `[B, Hq, Nq, D]`, `[B, Hkv, Nk, D]`, in the order in which they are cut into blocks.
        choice: how levels are chosen.
        scale: of the logits.
        v: values in the order of k, which a budget looks at, and no other mode.
        prefix_tokens: leading tokens that are read, and read, in full.
        is_causal: whether query `i` sees keys up to `i + Nk - Nq` alone.
        key_mask: bool `[B, Nk]`, which keys are there; None if all are. Blocks without one are level 0, and no part of
            the number of blocks that shares are shares of.
        impl: as `psa_attention`'s.
        generator: randomises the sampling of the importance estimate, alike for all items of the batch. A graph cannot
            hold one: inside `torch.compile` and `torch.vmap` it must be None.
    """
    if choice.mask_mode == "budget" and v is None:
        raise ValueError("v: expected the values, which mask_mode 'budget' looks at, got None")
    if generator is not None:
        return _choose_levels(q, k, v, key_mask, choice, prefix_tokens, is_causal, scale, impl, generator)
    return _choose_levels_op(
        q,
        k,
        v,
        choice.block_m,
        choice.block_n,
        list(choice.mask_ratios),
        [bound for share in choice.mask_ratios.values() for bound in share],
        choice.mask_mode,
        choice.min_full_ratio,
        choice.importance,
        list(choice.sim_thresholds or ()),
        choice.keep_first_block,
        choice.budget,
        choice.budget_scope,
        prefix_tokens,
        is_causal,
        scale,
        impl,
        key_mask,
    )


def _choose_levels(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    key_mask: Tensor | None,
    choice: LevelChoice,
    prefix_tokens: int,
    is_causal: bool,
    scale: float,
    impl: Impl,
    generator: torch.Generator | None = None,
) -> Tensor:
    if q.numel() == 0 or k.numel() == 0:
        blocks = block_count(q.shape[2], choice.block_m), block_count(k.shape[2], choice.block_n)
        return q.new_zeros(*q.shape[:2], *blocks, dtype=torch.int8)
    importance = block_importance(
        q,
        k,
        block_m=choice.block_m,
        block_n=choice.block_n,
        method=choice.importance,
        is_causal=is_causal,
        scale=scale,
        key_mask=key_mask,
        generator=generator,
        impl=impl,
    )
    if choice.mask_mode == "budget":
        assert v is not None
        levels = budget_levels(
            importance,
            expected_errors(q, k, v, block_n=choice.block_n, scale=scale, key_mask=key_mask, impl=impl),
            BlockGrid(choice.block_m, choice.block_n, q.shape[2], k.shape[2], is_causal, key_mask),
            budget=choice.level_budget,
            prefix_tokens=prefix_tokens,
            keep_first_block=choice.keep_first_block,
            scope=choice.budget_scope,
            impl=impl,
        )
    else:
        key_blocks = None
        if key_mask is not None:
            is_there = kept_count(key_mask, choice.block_n) > 0
            # Behind blocks of importance 0 that have a key.
            importance = importance.masked_fill(~is_there[:, None, None], -1)
            key_blocks = is_there.sum(-1)
        levels = select_levels(
            importance,
            choice.mask_ratios,
            mode=choice.mask_mode,
            min_full_ratio=choice.min_full_ratio,
            key_blocks=key_blocks,
            impl=impl,
        )
    if choice.sim_thresholds is not None:
        caps = similarity_caps(k, block_n=choice.block_n, thresholds=choice.sim_thresholds, key_mask=key_mask)
        levels = cap_levels(levels, caps)
    levels = exempt_levels(
        levels,
        block_m=choice.block_m,
        block_n=choice.block_n,
        query_tokens=q.shape[2],
        key_tokens=k.shape[2],
        prefix_tokens=prefix_tokens,
        keep_first_block=choice.keep_first_block,
        is_causal=is_causal,
        key_mask=key_mask,
    )
    if is_causal:
        serve_first_queries(levels, choice.block_m, choice.block_n, q.shape[2], k.shape[2], key_mask)
    return levels


@torch.library.custom_op("psa_triton::choose_levels", mutates_args=())
def _choose_levels_op(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    block_m: int,
    block_n: int,
    levels: list[int],
    shares: list[float],
    mask_mode: str,
    min_full_ratio: float,
    importance: str,
    sim_thresholds: list[float],
    keep_first_block: bool,
    budget: float,
    budget_scope: str,
    prefix_tokens: int,
    is_causal: bool,
    scale: float,
    impl: str,
    key_mask: Tensor | None = None,
) -> Tensor:
    ratios = dict(zip(levels, zip(shares[::2], shares[1::2], strict=True), strict=True))
    thresholds = Thresholds(*sim_thresholds) if sim_thresholds else None
    choice = LevelChoice(
        block_m,
        block_n,
        ratios,
        mask_mode,
        min_full_ratio,
        importance,
        thresholds,
        keep_first_block,
        budget,
        cast(Scope, budget_scope),
    )
    impl = resolve_impl(cast(Impl, impl), q)
    if impl == "triton" or len(q) < 2:  # what a program of a GPU kernel computes depends on no other
        return _choose_levels(q, k, v, key_mask, choice, prefix_tokens, is_causal, scale, impl)
    # The bits of a torch product depend on the size of the batch, and near ties on bits.
    values, masks = ([None] * len(q) if x is None else x.split(1) for x in (v, key_mask))
    return torch.cat(
        [
            _choose_levels(*item, choice, prefix_tokens, is_causal, scale, impl)
            for item in zip(q.split(1), k.split(1), values, masks, strict=True)
        ]
    )


@_choose_levels_op.register_fake
def _(q, k, v, block_m, block_n, *_settings):
    return q.new_empty(*q.shape[:2], -(-q.shape[2] // block_m), -(-k.shape[2] // block_n), dtype=torch.int8)


register_folding(_choose_levels_op)
