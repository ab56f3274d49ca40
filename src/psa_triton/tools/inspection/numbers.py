"""An inspection as plain data for a file, and as the lines of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from psa_triton.tools.inspection.inspect import Inspection
from psa_triton.tools.inspection.shares import level_shares, levels_in_use

SCHEMA_VERSION: Final = 1

Place = Mapping[str, int | str]
"""Where a call stands: transformer, layer and step of a generation, or the batch entry of a file."""


def place_name(place: Place, head: int | None = None) -> str:
    """A name for files, such as `layer_02_step_11_head_00`."""
    named = {**place} if head is None else {**place, "head": head}
    return "_".join(value if isinstance(value, str) else f"{key}_{value:02d}" for key, value in named.items())


def place_title(place: Place, head: int) -> str:
    """The same in words, such as `layer 2, step 11, head 0`."""
    named = {**place, "head": head}
    return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in named.items())


def call_data(place: Place, inspection: Inspection) -> dict[str, Any]:
    """Numbers of a call: of each head density, error, and shares by level."""
    levels = levels_in_use(inspection.heads)
    first = inspection.heads[0]
    return {
        "place": dict(place),
        "grid": inspection.grid,
        "prefix_tokens": inspection.prefix_tokens,
        "is_causal": inspection.is_causal,
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
                "levels": [asdict(share) for share in level_shares(inspection, head, levels)],
                "picture": f"{place_name(place, head.head)}.png",
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
            lines.append([*where, f"{head['density']:.3f}", pairs, *_attention(head["levels"]), _error(head["error"])])
    return columns, lines


def _attention(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Exact attention by level, and that of level 1 over the most that so many blocks could have."""
    finest = levels[0]
    if finest["mass"] is None:
        return ["-", "-"]
    recall = finest["mass_so_far"] / finest["best_so_far"] if finest["best_so_far"] else 1.0
    return ["/".join(f"{100 * share['mass']:.0f}" for share in levels), f"{recall:.3f}"]


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
