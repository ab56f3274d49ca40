"""Draws the pictures of the documentation with the library itself: `python docs/pictures.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from psa_triton import PSAConfig, psa_attention
from psa_triton.levels import density, levels_of
from psa_triton.ordering import grid_order
from psa_triton.pyramid import pyramid_layout, write_pyramid
from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.shapes import find_shape

IMAGES = Path(__file__).parent / "images"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
CURVES = {
    "more at both ends": "PSA with reuse between steps",
    "block top-k, more at both ends": "block top-k with the same reuse",
    "TaylorSeer": "TaylorSeer, which skips other layers too",
    "broadcast": "repeated outputs (broadcast)",
    "warm-up": "PSA after dense first steps",
}
"""Methods of `benchmarks/error_control.py` that the picture of cost shows, and what it calls them."""
LEVELS = (0, 8, 4, 2, 1)
COLOURS = ("#eeeeee", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
LEVEL_MAP = ListedColormap(COLOURS)
DPI = 130


def draw_pyramid(path: Path) -> None:
    """One key block of 32 tokens at every level, as the flat pyramid holds it."""
    generator = torch.Generator().manual_seed(3)
    signal = torch.randn(32, generator=generator).cumsum(0)[:, None]
    layout = pyramid_layout(32, 32, coarsest=8)
    rows = torch.empty(layout.rows, 1)
    write_pyramid(signal, layout, rows)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, level in enumerate(layout.levels):
        first, count = layout.first_row(level), 32 // level
        values = rows[first : first + count, 0].repeat_interleave(level)
        axes.imshow(
            values[None],
            extent=(0, 32, -place - 0.8, -place),
            cmap="viridis",
            vmin=float(signal.min()),
            vmax=float(signal.max()),
        )
        for edge in range(0, 33, level):
            axes.plot([edge, edge], [-place - 0.8, -place], color="white", linewidth=1)
        axes.text(-0.5, -place - 0.4, f"level {level}", ha="right", va="center")
        axes.text(32.5, -place - 0.4, f"{count} rows read", va="center")
    axes.set(xlim=(-5, 38), ylim=(-len(layout.levels), 0.1), aspect="auto")
    axes.axis("off")
    figure.savefig(path, dpi=DPI)


def draw_order(path: Path) -> None:
    """Which tokens share a block of 32, in raster order and along the Gilbert curve, on one frame of 16 x 24."""
    height, width, block = 16, 24, 32
    order = grid_order("Gilbert", (1, height, width), tile_size=(2, 8, 8))
    place = torch.arange(height * width)
    along = order.apply(place.float()[None, None, :, None])[0, 0, :, 0].long()
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (name, path_of) in zip(figure.subplots(1, 2), (("raster", place), ("Gilbert curve", along)), strict=True):
        blocks = torch.empty(height * width)
        blocks[path_of] = (place // block).float()
        axes.imshow(blocks.view(height, width), cmap="tab20")
        axes.plot(path_of % width, path_of // width, color="black", linewidth=0.6)
        axes.set_title(f"{name}: blocks of {block} tokens")
        axes.axis("off")
    figure.savefig(path, dpi=DPI)


def draw_level_map(path: Path) -> None:
    """At which level one query block reads the tokens of five frames, kept-or-dropped and with the pyramid."""
    shape = find_shape("wan21-480p").shrunk(8192).with_heads(1)
    q, k, v = local_inputs(shape, device=torch.device("cpu"), dtype=torch.float32)
    frames, height, width = shape.grid
    order = grid_order("Gilbert", shape.grid, tile_size=(2, 8, 8))
    pyramid = PSAConfig(use_rearrange=False, importance="pooled")
    kept = pyramid.replace(mask_ratios={1: (0.0, 0.15), 0: (0.15, 1.0)})
    middle = (frames // 2 * height + height // 2) * width + width // 2
    place = torch.arange(shape.tokens, dtype=torch.float32)
    along = order.apply(place[None, None, :, None])[0, 0, :, 0].long()
    row = int((along == middle).nonzero()) // pyramid.block_m
    shown = [frames // 2 + step for step in (-2, -1, 0, 1, 2)]
    figure = Figure(figsize=(10, 2.7), layout="constrained")
    grid = figure.subplots(2, len(shown))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for line, (name, config) in zip(grid, (("kept or dropped", kept), ("pyramid", pyramid)), strict=True):
        levels = levels_of(q, k, v, config)
        error = (psa_attention(q, k, v, config) - exact).norm() / exact.norm()
        of_token = torch.empty(shape.tokens, dtype=torch.int8)
        of_token[along] = levels[0, 0, row].repeat_interleave(config.block_n)[: shape.tokens]
        pictures = _rank(of_token).reshape(frames, height, width)
        for axes, frame in zip(line, shown, strict=True):
            axes.imshow(pictures[frame], cmap=LEVEL_MAP, norm=BoundaryNorm(range(6), 5), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if line is grid[0]:
                axes.set_title(f"frame {frame}")
        line[0].set_ylabel(f"{name}\ndensity {float(density(levels).mean()):.2f}, error {float(error):.2f}", fontsize=8)
    bar = figure.colorbar(line[0].images[0], ax=grid, ticks=[0.5, 1.5, 2.5, 3.5, 4.5], shrink=0.8)
    bar.ax.set_yticklabels(["skipped", "level 8", "level 4", "level 2", "level 1"])
    figure.savefig(path, dpi=DPI)


def draw_cost(path: Path) -> None:
    """How close videos are to the dense ones over the cost of attention, from the newest results."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (steps, tokens) in zip(panels, ((24, "4,608"), (12, "1,152")), strict=True):
        results = sorted(RESULTS.glob(f"error_control_{steps}_steps_?x?_*.json"))[-1]
        rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
        for method, label in CURVES.items():
            points = sorted((row["cost"], row["psnr"]) for row in rows if row["method"] == method)
            axes.plot(*np.array(points).reshape(-1, 2).T, marker="o", label=label)
        axes.set(title=f"{tokens} tokens, {steps} steps", xlabel="cost of attention, dense = 1", xlim=(0, 0.6))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR to the dense video, dB")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=DPI)


def _rank(levels: torch.Tensor) -> np.ndarray:
    """0 for skipped, then finer and finer: the order of `LEVELS`."""
    ranks = torch.zeros(9, dtype=torch.long)
    ranks[list(LEVELS)] = torch.arange(len(LEVELS))
    return ranks[levels.long()].numpy()


def main() -> None:
    """Draw all of them."""
    IMAGES.mkdir(exist_ok=True)
    draw_pyramid(IMAGES / "pyramid.png")
    draw_order(IMAGES / "order.png")
    draw_level_map(IMAGES / "level_map.png")
    draw_cost(IMAGES / "cost.png")


if __name__ == "__main__":
    main()
