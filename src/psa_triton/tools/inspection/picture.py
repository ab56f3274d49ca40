"""One head of an attention call as a picture: levels, importance, shares, and levels over the frames."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from psa_triton.tools.inspection.exact import spread_evenly
from psa_triton.tools.inspection.inspect import HeadInspection, Inspection
from psa_triton.tools.inspection.numbers import LevelShare, level_shares, levels_in_use, visible_pairs
from psa_triton.tools.video import figure_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure, SubFigure

LEVEL_COLOURS: Final = {
    0: "#eeeeee",
    64: "#fdf0c8",
    32: "#fbdc8c",
    16: "#eebc4a",
    8: "#c6dbef",
    4: "#6baed6",
    2: "#2171b5",
    1: "#08306b",
}
"""Coarsest first; told apart by people who are colour-blind too."""
_QUERY_COLOUR: Final = "#d55e00"
_SHARE_COLOURS: Final = {"block pairs": "#999999", "estimated importance": "#56b4e9", "exact attention": "#0072b2"}
_QUERY_BLOCKS: Final = 3
_MOST_FRAMES: Final = 8
_DOTS: Final = 110
"""Size of a query's dot, in square points, times the rows or columns of a frame."""
_LEAST_MASS: Final = 1e-6
"""Colours of importance go no deeper than this."""


@dataclass(frozen=True)
class FrameMap:
    """One query block over the frames.

    Attributes:
        block: its index.
        frames: frames worth showing, the block's own among them.
        levels: at which each visual token is read, int8 `[t, h, w]`.
        queries: which tokens are its queries, bool `[t, h, w]`.
    """

    block: int
    frames: tuple[int, ...]
    levels: torch.Tensor
    queries: torch.Tensor


def frame_map(inspection: Inspection, head: HeadInspection, block: int, *, frames: int) -> FrameMap:
    """The map of a query block, with up to `frames` frames to show.

    Raises:
        ValueError: the tokens have no place in frames.
    """
    if inspection.inputs.grid is None:
        raise ValueError("inspection: expected one of visual tokens, got one without a grid")
    config, visual = inspection.config, prod(inspection.inputs.grid)
    levels = torch.empty(len(head.key_places), dtype=torch.int8)
    levels[head.key_places] = head.levels[block].repeat_interleave(config.block_n)[: len(levels)]
    queries = torch.zeros(len(head.query_places), dtype=torch.bool)
    queries[head.query_places[block * config.block_m : (block + 1) * config.block_m]] = True
    levels, queries = levels[-visual:].view(inspection.inputs.grid), queries[-visual:].view(inspection.inputs.grid)
    own = int(queries.sum((1, 2)).argmax())
    return FrameMap(block, _frames_with(own, inspection.inputs.grid[0], frames), levels, queries)


def _frames_with(own: int, count: int, wanted: int) -> tuple[int, ...]:
    """Frames spread evenly, the one nearest to `own` moved onto it."""
    frames = list(spread_evenly(count, wanted))
    nearest = min(range(len(frames)), key=lambda place: abs(frames[place] - own))
    frames[nearest] = own
    return tuple(frames)


def draw(inspection: Inspection, head: HeadInspection, title: str) -> bytes:
    """The picture as PNG.

    Args:
        inspection: the call.
        head: one of its heads.
        title: what call it is.
    """
    from matplotlib.figure import Figure

    maps = _frame_maps(inspection, head)
    figure = Figure(figsize=(13, 4.1 + 1.35 * len(maps)), layout="constrained")
    figure.suptitle(f"{title}\n{_figures(inspection, head)}", fontsize=10)
    if maps:
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.3, 1.35 * len(maps)])
        _draw_call(parts[0, 0], inspection, head)
        _draw_frames(parts[1, 0], maps)
    else:
        _draw_call(figure, inspection, head)
    _add_legend(figure, levels_in_use([head]), queries=bool(maps))
    return figure_png(figure, 100)


def _figures(inspection: Inspection, head: HeadInspection) -> str:
    """The numbers that sum it up."""
    cost = head.density + inspection.estimation_cost
    parts = [f"density {head.density:.3f}", f"{cost:.3f} with the cost of estimating importance"]
    if head.error is not None:
        parts.append(f"error of the output {head.error:.3f}")
    return ", ".join(parts)


def _draw_call(figure: Figure | SubFigure, inspection: Inspection, head: HeadInspection) -> None:
    """Level matrix, estimated importance, exact mass if there is any, and bars."""
    panels = 3 + (head.mass is not None)
    axes = figure.subplots(1, panels, width_ratios=[*([1.0] * (panels - 1)), 0.85])
    visible = visible_pairs(inspection, head)
    _draw_levels(axes[0], head.levels, visible)
    norm = _log_norm(head)
    image = _draw_importance(axes[1], head.importance, visible, norm)
    axes[1].set_title("importance, as estimated", fontsize=9)
    axes[1].set_yticklabels([])
    if head.mass is not None:
        _draw_importance(axes[2], head.mass, visible[list(inspection.sampled)], norm)
        axes[2].set_title(f"exact attention, {len(inspection.sampled)} query blocks", fontsize=9)
        places = spread_evenly(len(inspection.sampled), 6)
        axes[2].set_yticks(places, [str(inspection.sampled[place]) for place in places])
    bar = figure.colorbar(image, ax=list(axes[1:-1]), pad=0.01)
    bar.set_label("share of the row", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _draw_shares(axes[-1], level_shares(inspection, head, levels_in_use([head])))
    for matrix in axes[:-1]:
        matrix.set_xlabel(_key_label(inspection), fontsize=8)
        matrix.tick_params(labelsize=8)
    axes[0].set_ylabel("query block", fontsize=8)


def _key_label(inspection: Inspection) -> str:
    prefix = f"; {inspection.inputs.prefix_tokens} text tokens first" if inspection.inputs.prefix_tokens else ""
    return f"key block of {inspection.config.block_n} tokens{prefix}"


def _draw_levels(axes: Axes, levels: torch.Tensor, visible: torch.Tensor) -> None:
    """The level matrix; what a causal mask hides stays white, like in `_draw_importance`."""
    axes.set_title("level of each block pair", fontsize=9)
    colours = _colours(levels)
    colours[~visible.numpy()] = 1
    # Where blocks are finer than pixels their colours are mixed, never their levels.
    axes.imshow(colours, aspect="auto", interpolation="antialiased", interpolation_stage="rgba")


def _draw_importance(axes: Axes, values: torch.Tensor, visible: torch.Tensor, norm: LogNorm) -> Any:
    shown = np.ma.masked_array(values.clamp(min=norm.vmin).numpy(), mask=~visible.numpy())
    return axes.imshow(shown, aspect="auto", norm=norm, cmap="cividis")


def _log_norm(head: HeadInspection) -> LogNorm:
    from matplotlib.colors import LogNorm

    shown = [head.importance] if head.mass is None else [head.importance, head.mass]
    least = min(float(values[values > 0].min()) for values in shown)
    most = max(float(values.max()) for values in shown)
    return LogNorm(max(min(least, most / 10), _LEAST_MASS), most)


def _draw_shares(axes: Axes, shares: list[LevelShare]) -> None:
    """Bars of each level's share in block pairs, importance and exact attention."""
    given = {
        "block pairs": [share.pairs for share in shares],
        "estimated importance": [share.importance for share in shares],
        "exact attention": [share.mass for share in shares if share.mass is not None],
    }
    given = {name: values for name, values in given.items() if values}
    height = 0.8 / len(given)
    for place, (name, values) in enumerate(given.items()):
        lines = [line + (place - (len(given) - 1) / 2) * height for line in range(len(shares))]
        bars = axes.barh(lines, [100 * value for value in values], height, color=_SHARE_COLOURS[name], label=name)
        axes.bar_label(bars, [f"{100 * value:.0f}" for value in values], fontsize=35 / max(5, len(shares)), padding=2)
    axes.set_yticks(range(len(shares)), [_level_name(share.level) for share in shares])
    axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title("share of each level, %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(given) - 1)


def _frame_maps(inspection: Inspection, head: HeadInspection) -> list[FrameMap]:
    """Of a few query blocks spread over the sequence; none where tokens have no place in a frame."""
    if inspection.inputs.grid is None:
        return []
    text_blocks = -(-inspection.inputs.prefix_tokens // inspection.config.block_m)
    visual = head.levels.shape[0] - text_blocks
    blocks = [text_blocks + block for block in spread_evenly(visual, _QUERY_BLOCKS)]
    return [frame_map(inspection, head, block, frames=_MOST_FRAMES) for block in blocks]


def _draw_frames(figure: SubFigure, maps: list[FrameMap]) -> None:
    """A line a query block: how its frames' tokens are read, with dots on the queries."""
    figure.suptitle("how the keys of some frames are read by one query block (dots: its queries)", fontsize=9)
    lines = figure.subplots(len(maps), len(maps[0].frames), squeeze=False)
    for line, shown in zip(lines, maps, strict=True):
        for axes, frame in zip(line, shown.frames, strict=True):
            axes.imshow(_colours(shown.levels[frame]), interpolation="nearest")
            rows, columns = shown.queries[frame].nonzero(as_tuple=True)
            axes.scatter(columns, rows, s=_DOTS / max(shown.levels.shape[1:]), color=_QUERY_COLOUR, linewidths=0)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"frame {frame}", fontsize=8, pad=2)
        line[0].set_ylabel(f"query block {shown.block}", fontsize=8)


def _add_legend(figure: Figure, levels: tuple[int, ...], *, queries: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [
        Patch(facecolor=LEVEL_COLOURS[level], edgecolor="#aaaaaa", linewidth=0.5, label=_level_name(level))
        for level in levels
    ]
    if queries:
        marks.append(Line2D([], [], marker="o", linestyle="", markersize=3, color=_QUERY_COLOUR, label="query"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)


def _level_name(level: int) -> str:
    return f"level {level}" if level else "skipped"


def _colours(levels: torch.Tensor) -> NDArray[np.float32]:
    """RGB of each level, `[..., 3]`."""
    from matplotlib.colors import to_rgb

    table = np.zeros((65, 3), dtype=np.float32)
    for level, colour in LEVEL_COLOURS.items():
        table[level] = to_rgb(colour)
    return table[levels.long().numpy()]
