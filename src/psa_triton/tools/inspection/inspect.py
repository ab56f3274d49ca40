"""One attention call, looked at: levels, importance, where the exact attention lies, and what sparse attention lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.importance import block_importance, estimation_cost
from psa_triton.tools.inspection.exact import sample_exactly
from psa_triton.tools.inspection.inputs import AttentionInputs


@dataclass(frozen=True, kw_only=True)
class HeadInspection:
    """One head of an attention call; tensors are on the CPU."""

    head: int
    """Its index."""
    levels: Tensor
    """int8 `[nq, nk]`."""
    importance: Tensor
    """As the configuration estimates it: float32 `[nq, nk]`, rows sum to 1."""
    density: float
    """Groups read / keys visible."""
    mass: Tensor | None
    """Exact attention mass of key blocks, float32 `[sampled, nk]`, rows sum to 1; None if no blocks were sampled."""
    error: float | None
    """L2 norm of sparse minus exact output over that of the exact one, sampled blocks; None without them or values."""
    query_places: Tensor
    """int64 `[Nq]`: the token that stands at each position of the order in which queries are cut into blocks."""
    key_places: Tensor
    """int64 `[Nk]`: likewise of keys."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Some heads of one attention call."""

    config: PSAConfig
    """Its blocks cut the sequence."""
    inputs: AttentionInputs
    """What was looked at."""
    estimation_cost: float
    """Multiply-adds of the importance estimate as a share of dense attention's."""
    sampled: tuple[int, ...]
    """Query blocks whose exact attention was computed."""
    heads: tuple[HeadInspection, ...]
    """In the order asked for."""


@torch.no_grad()
def inspect_attention(
    inputs: AttentionInputs,
    config: PSAConfig,
    *,
    heads: Sequence[int] | None = None,
    levels: Tensor | None = None,
    query_blocks: int = 16,
    impl: Impl = "auto",
) -> Inspection:
    """Look at one attention call.

    Args:
        inputs: a batch of one.
        config: how attention is made sparse.
        heads: query heads to look at; None for all.
        levels: those that the call read, int8 `[1, Hq, nq, nk]`; None to choose them as `psa_attention` does.
        query_blocks: how many query blocks, spread evenly, to compute exact attention of; 0 for none. That costs their
            share of dense attention.
        impl: implementation of the sparse operator.

    Raises:
        ValueError: a batch of several, a head that does not exist, or inputs that `config` cannot be used with.
    """
    if inputs.q.shape[0] != 1:
        raise ValueError(f"inputs: expected a batch of one, got {inputs.q.shape[0]}; take one by batch_entry")
    chosen = choose_indexes("heads", heads, inputs.q.shape[1])
    inputs.check(config)
    for_q, for_k = inputs.orders(config)
    ordered = inputs.ordered(for_q, for_k)
    if levels is None:
        levels = ordered.choose_levels(config, impl)
    levels = levels[:, chosen]
    some = ordered.heads(chosen)
    importance = block_importance(
        some.q,
        some.k,
        block_m=config.block_m,
        block_n=config.block_n,
        method=config.importance,
        is_causal=inputs.is_causal,
        impl=impl,
    )
    densities = some.density(levels, config)
    exact = sample_exactly(some, levels, config, query_blocks=query_blocks, impl=impl) if query_blocks else None
    group = inputs.q.shape[1] // inputs.k.shape[1]
    return Inspection(
        config=config,
        inputs=inputs,
        estimation_cost=estimation_cost(config.importance, config.block_m, config.block_n),
        sampled=() if exact is None else exact.blocks,
        heads=tuple(
            HeadInspection(
                head=head,
                levels=levels[0, place].cpu(),
                importance=importance[0, place].cpu(),
                density=float(densities[0, place]),
                mass=None if exact is None else exact.mass[place],
                error=None if exact is None or exact.errors is None else exact.errors[place],
                query_places=_places(for_q.permutation, head),
                key_places=_places(for_k.permutation, head // group),
            )
            for place, head in enumerate(chosen)
        ),
    )


def choose_indexes(name: str, asked: Sequence[int] | None, count: int) -> list[int]:
    """Those asked for, checked; all by default.

    Raises:
        ValueError: naming those that do not exist, and what does.
    """
    if asked is None:
        return list(range(count))
    if unknown := [index for index in asked if not 0 <= index < count]:
        raise ValueError(f"{name}: expected indexes from 0 to {count - 1}, got {', '.join(map(str, unknown))}")
    return list(asked)


def _places(permutation: Tensor, head: int) -> Tensor:
    return (permutation if permutation.ndim == 1 else permutation[0, head]).cpu()
