"""Measured curves with the points that were chosen, and the budgets by layer and part of the run, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psa_triton.tools.tuning.allocation import Allocation, Cell
from psa_triton.tools.tuning.curve import DENSE
from psa_triton.tools.tuning.plan import RunPart
from psa_triton.tools.video import figure_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 64
"""Numbers are written into the table of budgets up to this many."""


def draw(
    cells: Sequence[Cell], parts: Sequence[RunPart], allocation: Allocation, uniform: Allocation, title: str
) -> bytes:
    """The picture as PNG; the same for the same numbers.

    Args:
        cells: every layer in every part, with its curve.
        parts: of the run.
        allocation: the points that were chosen.
        uniform: what one budget for all gives at the same cost.
        title: what was tuned.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_curves(left, cells, parts, allocation, uniform)
    _draw_budgets(right, cells, parts, allocation)
    return figure_png(figure, 100)


def _draw_curves(
    axes: Axes, cells: Sequence[Cell], parts: Sequence[RunPart], allocation: Allocation, uniform: Allocation
) -> None:
    """Without the point of dense attention, whose error of 0 has no place on a logarithmic axis."""
    from matplotlib import colormaps

    colours = [colormaps["viridis"](index / max(1, len(parts) - 1)) for index in range(len(parts))]
    for index, (cell, point) in enumerate(zip(cells, allocation.points, strict=True)):
        measured = [p for p in cell.measured if p != DENSE]
        label = f"steps {parts[cell.part]}" if cell.layer == cells[0].layer else None
        costs, errors = [p.cost for p in measured], [p.error for p in measured]
        axes.plot(costs, errors, ".-", color=colours[cell.part], lw=1, alpha=0.7, label=label)
        if point.error > 0:
            chosen = "chosen, one a layer and part" if index == 0 else None
            axes.plot(point.cost, point.error, "o", color=colours[cell.part], ms=5, mec="black", label=chosen)
    for found, marker, label in ((allocation, "*", "all, tuned"), (uniform, "X", "all, one budget")):
        axes.plot(found.cost, found.error, marker, color="#d55e00", ms=10, mec="black", label=label)
    axes.set(xscale="log", yscale="log", xlabel="density, estimate of importance included")
    axes.set_ylabel("relative L2 error of attention's output")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")


def _draw_budgets(axes: Axes, cells: Sequence[Cell], parts: Sequence[RunPart], allocation: Allocation) -> None:
    layers = 1 + max(cell.layer for cell in cells)
    table = [[0.0] * layers for _ in parts]
    for cell, point in zip(cells, allocation.points, strict=True):
        table[cell.part][cell.layer] = point.budget
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(parts)), [str(part) for part in parts])
    axes.set(xlabel="layer", ylabel="denoising steps", title="budget (1: dense)")
    if len(cells) > _FEW:
        return
    axes.set_xticks(range(layers))
    for row, budgets in enumerate(table):
        for layer, budget in enumerate(budgets):
            axes.text(layer, row, f"{budget:.2f}", ha="center", va="center", color="white" if budget > 0.5 else "black")
