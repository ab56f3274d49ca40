"""What each level has a share in; an inspection as plain data for a file, and as the lines of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.tools.inspection.inspect import HeadInspection, Inspection

SCHEMA_VERSION: Final = 1

_USUAL: Final = (1, 2, 4, 8, 0)


Place = Mapping[str, int | str]
"""Where a call, or a head of it, stands: transformer, layer and step of a generation, or the batch entry of a file."""


def place_name(place: Place) -> str:
    """A name for files, such as `layer_02_step_11_head_00`."""
    return "_".join(value if isinstance(value, str) else f"{key}_{value:02d}" for key, value in place.items())


def place_title(place: Place) -> str:
    """The same in words, such as `layer 2, step 11, head 0`."""
    return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in place.items())


class LevelShare(NamedTuple):
    """The block pairs of one level. Of 0 to 1 all."""

    level: int
    pairs: float
    """Of the pairs in which a query sees a key."""
    importance: float
    """Of the estimated importance."""
    mass: float | None = None
    """Of the exact attention mass; None if none was sampled."""
    mass_so_far: float | None = None
    """Exact mass of this and finer levels."""
    best_so_far: float | None = None
    """The most that so many key blocks of each query block could have."""


def levels_in_use(heads: Iterable[HeadInspection]) -> tuple[int, ...]:
    """Finest first, 0 last; coarser ones than 8 only if they occur."""
    found = {int(level) for head in heads for level in head.levels.unique()}
    return tuple(sorted(found.union(_USUAL), key=lambda level: level or float("inf")))


def visible_pairs(inspection: Inspection, head: HeadInspection) -> Tensor:
    """Which query blocks see which key blocks at all, bool `[nq, nk]`."""
    if not inspection.inputs.is_causal:
        return torch.ones_like(head.levels, dtype=torch.bool)
    config = inspection.config
    tokens = len(head.query_places), len(head.key_places)
    return Blocks(config.block_m, config.block_n, *tokens, is_causal=True).visible(head.levels.device)


def level_shares(inspection: Inspection, head: HeadInspection, levels: Sequence[int]) -> list[LevelShare]:
    """Shares of each of `levels`, in their order; the finest must come first."""
    rows, mass = list(inspection.sampled), head.mass
    visible = visible_pairs(inspection, head)
    importance = head.importance.double() / head.importance.sum()
    shares: list[LevelShare] = []
    taken = torch.zeros_like(head.levels, dtype=torch.bool)
    for level in levels:
        there = (head.levels == level) & visible
        taken |= there
        share = LevelShare(
            level=level, pairs=int(there.sum()) / int(visible.sum()), importance=float(importance[there].sum())
        )
        if mass is not None and rows:
            share = share._replace(
                mass=_mean_mass(mass, there[rows]),
                mass_so_far=_mean_mass(mass, taken[rows]),
                best_so_far=_mean_mass(mass, _as_many_best(mass, taken[rows])),
            )
        shares.append(share)
    return shares


def _mean_mass(mass: Tensor, there: Tensor) -> float:
    return float(mass.double().masked_fill(~there, 0).sum(-1).mean())


def _as_many_best(mass: Tensor, taken: Tensor) -> Tensor:
    """In each row as many key blocks as are taken, those of the largest mass."""
    ranks = mass.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return ranks < taken.sum(-1, keepdim=True)


def call_data(place: Place, inspection: Inspection) -> dict[str, Any]:
    """Numbers of a call: of each head density, error, and shares by level."""
    levels = levels_in_use(inspection.heads)
    first = inspection.heads[0]
    return {
        "place": dict(place),
        "grid": inspection.inputs.grid,
        "prefix_tokens": inspection.inputs.prefix_tokens,
        "is_causal": inspection.inputs.is_causal,
        "query_tokens": len(first.query_places),
        "key_tokens": len(first.key_places),
        "query_blocks": first.levels.shape[0],
        "key_blocks": first.levels.shape[1],
        "sampled_query_blocks": list(inspection.sampled),
        "heads": [
            {
                "head": head.head,
                "density": head.density,
                "density_with_estimation": head.density + inspection.estimation_cost,
                "error": head.error,
                "levels": [share._asdict() for share in level_shares(inspection, head, levels)],
                "picture": f"{place_name({**place, 'head': head.head})}.png",
            }
            for head in inspection.heads
        ],
    }


def table(calls: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns, and a line for each call and head; shares in percent, finest level first.

    Args:
        calls: as `call_data` gave them, at least one.
    """
    longest = max((head["levels"] for call in calls for head in call["heads"]), key=len)
    levels = "/".join(str(share["level"]) for share in longest)
    columns = [*calls[0]["place"], "head", "density", f"% of pairs at {levels}", "% of attention", "recall", "error"]
    lines = []
    for call in calls:
        for head in call["heads"]:
            where = [*(str(value) for value in call["place"].values()), str(head["head"])]
            pairs = "/".join(f"{100 * share['pairs']:.0f}" for share in head["levels"])
            error = "-" if head["error"] is None else f"{head['error']:.4f}"
            lines.append([*where, f"{head['density']:.3f}", pairs, *_attention(head["levels"]), error])
    return columns, lines


def _attention(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Exact attention by level, and that of level 1 over the most that so many blocks could have."""
    finest = levels[0]
    if finest["mass"] is None:
        return ["-", "-"]
    recall = finest["mass_so_far"] / finest["best_so_far"] if finest["best_so_far"] else 1.0
    return ["/".join(f"{100 * share['mass']:.0f}" for share in levels), f"{recall:.3f}"]
