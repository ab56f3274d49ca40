"""What each level has a share in: block pairs, estimated importance, exact attention mass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.tools.inspection.inspect import HeadInspection, Inspection

_USUAL = (1, 2, 4, 8, 0)


@dataclass(frozen=True, kw_only=True)
class LevelShare:
    """The block pairs of one level. Of 0 to 1 all."""

    level: int
    pairs: float
    """Of the pairs in which a query sees a key."""
    importance: float
    """Of the estimated importance."""
    mass: float | None
    """Of the exact attention mass; None if none was sampled."""
    mass_so_far: float | None
    """Exact mass of this and finer levels."""
    best_so_far: float | None
    """The most that so many key blocks of each query block could have."""


def levels_in_use(heads: Iterable[HeadInspection]) -> tuple[int, ...]:
    """Finest first, 0 last; coarser ones than 8 only if they occur."""
    found = {int(level) for head in heads for level in head.levels.unique()}
    return tuple(sorted(found.union(_USUAL), key=_coarseness))


def visible_pairs(inspection: Inspection, head: HeadInspection) -> Tensor:
    """Which query blocks see which key blocks at all, bool `[nq, nk]`."""
    if not inspection.is_causal:
        return torch.ones_like(head.levels, dtype=torch.bool)
    config = inspection.config
    tokens = len(head.query_places), len(head.key_places)
    return Blocks(config.block_m, config.block_n, *tokens, is_causal=True).visible(head.levels.device)


def level_shares(inspection: Inspection, head: HeadInspection, levels: Sequence[int]) -> list[LevelShare]:
    """Shares of each of `levels`, in their order; the finest must come first."""
    rows = list(inspection.sampled)
    visible = visible_pairs(inspection, head)
    importance = head.importance.double() / head.importance.sum()
    shares: list[LevelShare] = []
    taken = torch.zeros_like(head.levels, dtype=torch.bool)
    for level in levels:
        there = (head.levels == level) & visible
        taken |= there
        sampled = head.mass is not None and len(rows) > 0
        shares.append(
            LevelShare(
                level=level,
                pairs=int(there.sum()) / int(visible.sum()),
                importance=float(importance[there].sum()),
                mass=_mean_mass(head.mass, there[rows]) if sampled else None,
                mass_so_far=_mean_mass(head.mass, taken[rows]) if sampled else None,
                best_so_far=_mean_mass(head.mass, _as_many_best(head.mass, taken[rows])) if sampled else None,
            )
        )
    return shares


def _coarseness(level: int) -> float:
    return level or float("inf")


def _mean_mass(mass: Tensor | None, there: Tensor) -> float:
    assert mass is not None
    return float(mass.double().masked_fill(~there, 0).sum(-1).mean())


def _as_many_best(mass: Tensor | None, taken: Tensor) -> Tensor:
    """In each row as many key blocks as are taken, those of the largest mass."""
    assert mass is not None
    ranks = mass.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return ranks < taken.sum(-1, keepdim=True)
