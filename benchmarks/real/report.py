"""What was found, in words, as a table and as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from real.methods import BASE, GROUPS, Method, settings

SHOWN_COST = 0.15
"""Total cost at which methods stand in the tables."""
_COLUMNS = 3
_ERROR_TICKS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)

Row = dict[str, Any]
"""A method on a set at a cost: group, method, set, wanted, density, cost, error, worst, reached."""


def markdown(report: dict[str, Any]) -> str:
    rows, vit, others = report["rows"], report["vit_sets"], report["other_sets"]
    heading = [
        f"# Real attention, {report['date'][:10]}",
        "",
        f"`{report['command']}`; {report['hardware']['cpu']}, torch {report['versions']['torch']}, "
        f"{report['seconds']} s.",
        "",
        "Relative L2 error of the attention output against dense attention: mean over heads and layers. Cost is a",
        "share of dense attention's multiply-adds: what is read, the estimate of importance, and finding the order.",
        f"Tables are at a total cost of {SHOWN_COST:g}; a dash: the method costs more, however little it reads.",
        "Vision transformer: four layers, six heads, 20,736 tokens (16x36x36) of two clips; `rope`: with a 3D rotary",
        "embedding on queries and keys. `exact` importance is what no method can have for free: a lower bound.",
        "",
        "## What wins",
        "",
        *(_verdict(report, group) for group in GROUPS),
        "",
        f"![Error against cost]({report['picture']})",
        "",
        "## Vision transformer",
        "",
        *_table(rows, tuple(GROUPS), vit, mean=True),
        "",
        "## The built-in video model, random inputs, and inputs made to break sparse attention",
        "",
        "Made inputs have values that are noise, so wherever attention is flat all that is left out is lost.",
        "",
        *_table(rows, tuple(g for g in GROUPS if _has(rows, g, others)), others, mean=False),
    ]
    return "\n".join(heading) + "\n"


def _verdict(report: dict[str, Any], group: str) -> str:
    """Methods of a group by mean error, the best first; then the winners at other costs, where they are others."""
    rows, sets = report["rows"], report["vit_sets"]
    ranked = _ranked(rows, group, sets, SHOWN_COST)
    if not ranked:
        return f"* **{group}**: no method reaches a cost of {SHOWN_COST:g}"
    (least, winner), *rest = ranked
    wins = sum(_ranked(rows, group, [name], SHOWN_COST)[0][1] == winner for name in sets)
    text = f"* **{group}**: {winner} {least:.3f} (least on {wins} of {len(sets)} sets)"
    text += "".join(f"; {name} {error:.3f}" for error, name in rest)
    for cost in report["costs"]:
        if (others := _ranked(rows, group, sets, cost)) and others[0][1] != winner:
            at_winner = next((f" ({winner} {error:.3f})" for error, name in others if name == winner), "")
            text += f". At {cost:g}: {others[0][1]} {others[0][0]:.3f}{at_winner}"
    return text


def _ranked(rows: list[Row], group: str, sets: list[str], cost: float) -> list[tuple[float, str]]:
    """Errors and names of the methods that can be had at a cost, the best first."""
    return sorted(
        (error, method.name)
        for method in GROUPS[group]
        if method.importance != "exact" and (error := _mean(rows, group, method.name, sets, cost)) is not None
    )


def _table(rows: list[Row], groups: tuple[str, ...], sets: list[str], *, mean: bool) -> list[str]:
    columns = ["", *sets, *(["mean"] if mean else [])]
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for group in groups:
        lines.append(f"| **{group}** |" + " |" * (len(columns) - 1))
        for method in GROUPS[group]:
            errors = [_error(rows, group, method.name, name) for name in sets]
            if mean:
                errors.append(_mean(rows, group, method.name, sets))
            if any(error is not None for error in errors):
                cells = [method.name, *("-" if error is None else f"{error:.3f}" for error in errors)]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _has(rows: list[Row], group: str, sets: list[str]) -> bool:
    return any(row["group"] == group and row["set"] in sets for row in rows)


def _error(rows: list[Row], group: str, method: str, name: str, cost: float = SHOWN_COST) -> float | None:
    for row in rows:
        if (row["group"], row["method"], row["set"], row["wanted"]) == (group, method, name, cost) and row["reached"]:
            return row["error"]
    return None


def _mean(rows: list[Row], group: str, method: str, sets: list[str], cost: float = SHOWN_COST) -> float | None:
    errors = [_error(rows, group, method, name, cost) for name in sets]
    known = [e for e in errors if e is not None]
    return sum(known) / len(known) if len(known) == len(sets) else None


def draw(report: dict[str, Any], path: Path) -> None:
    """A panel for each group: error against cost, mean over the vision transformer's sets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    rows, sets, costs = report["rows"], report["vit_sets"], report["costs"]
    lines = -(-len(GROUPS) // _COLUMNS)
    figure, axes = plt.subplots(
        lines, _COLUMNS, figsize=(4.6 * _COLUMNS, 4.2 * lines), sharex=True, sharey=True, layout="constrained"
    )
    for panel, (group, methods) in zip(axes.flat, GROUPS.items(), strict=True):
        for method, marker in zip(methods, "osD^vP*", strict=False):
            points = [(c, e) for c in costs if (e := _mean(rows, group, method.name, sets, c)) is not None]
            if points:
                panel.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=method.name, **_style(method))
        panel.axvline(SHOWN_COST, color="0.85", zorder=0)
        panel.set(title=group, xscale="log", yscale="log")
        panel.legend(fontsize=8, loc="lower left", framealpha=0.8)
        panel.grid(alpha=0.3)
    axes.flat[0].xaxis.set(major_locator=FixedLocator(costs), minor_locator=NullLocator())
    axes.flat[0].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.flat[0].yaxis.set(major_locator=FixedLocator(_ERROR_TICKS), minor_locator=NullLocator())
    axes.flat[0].yaxis.set_major_formatter("{x:g}")
    axes.flat[0].set_ylim(bottom=axes.flat[0].get_ylim()[0] / 1.6)  # room for the legends
    figure.supxlabel("total cost, share of dense attention (log)")
    figure.supylabel("relative error of the output, mean over the vision transformer's sets (log)")
    figure.savefig(path, dpi=110)


def _style(method: Method) -> dict[str, Any]:
    if method.importance == "exact":
        return {"linestyle": "--", "color": "0.5"}
    return {"color": "black", "linewidth": 2} if settings(method) == settings(BASE) else {}
