"""How far sparse attention is from dense attention on short sequences: `python benchmarks/few_blocks.py`.

Sequences of 1, 2, 3, ... key blocks are cut out of the built-in video model's tensors (its first frames, or part of the
first), and made as smooth random fields. Presets are taken as shipped but for their blocks, 64 queries and 32 keys, so
that there are enough of these in few tokens. The presets of language models see random walks under a causal mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from statistics import fmean
from typing import Final

import torch
import torch.nn.functional as F
from choices import Choices
from harness import Report, Run, heading, options, table
from tensors import Grid
from tensors.tiny_wan import tiny_wan_cases
from torch import Tensor

from psa_triton import PSAConfig, load_preset
from psa_triton.attention import sparse_attention

BLOCK_M: Final = 64
BLOCK_N: Final = 32
GRIDS: Final = {
    1: (1, 4, 8),
    2: (1, 8, 8),
    3: (1, 8, 12),
    4: (2, 8, 8),
    6: (2, 8, 12),
    8: (4, 8, 8),
    12: (4, 8, 12),
    18: (4, 12, 12),
    36: (8, 12, 12),
}
"""Frames, height and width by the number of key blocks."""
SEEDS: Final = range(6)

Cases = Iterable[tuple[Tensor, Tensor, Tensor]]
"""q, k and v `[1, H, N, 64]`."""


def video_cases(grid: Grid) -> Iterator[tuple[Tensor, ...]]:
    """The first corner of that size of every second layer's tensors."""
    t, h, w = grid
    for case in list(tiny_wan_cases())[::2]:
        yield tuple(x.unflatten(2, case.grid)[:, :, :t, :h, :w].flatten(2, 4) for x in (case.q, case.k, case.v))


def smooth_cases(grid: Grid) -> Iterator[tuple[Tensor, ...]]:
    """Gaussian noise on every fourth point of the grid, interpolated."""
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(1, 3 * 2 * 64, *(max(2, -(-size // 4)) for size in grid), generator=generator)
        fine = F.interpolate(coarse, size=grid, mode="trilinear", align_corners=True)[0]
        yield tuple(2 * x.flatten(2).mT[None] for x in fine.unflatten(0, (3, 2, 64)))


def walk_cases(grid: Grid) -> Iterator[tuple[Tensor, ...]]:
    """Noise and its running sum: near tokens are alike."""
    for seed in SEEDS:
        noise = torch.randn(3, 1, 2, math.prod(grid), 64, generator=torch.Generator().manual_seed(seed))
        yield tuple(noise + noise.cumsum(-2) / 8)


VIDEO: Final = ("Wan2.1_1.3b", ("psa_balanced", "psa_topk", "psa_budget"), False)
TEXT: Final = ("Qwen2.5-VL", ("psa_balanced", "psa_budget"), True)
INPUTS: Final = {
    "tiny-wan": (video_cases, *VIDEO),
    "smooth fields": (smooth_cases, *VIDEO),
    "random walks, causal": (walk_cases, *TEXT),
}
"""How they are made, a section of presets, those that are measured, and whether there is a causal mask."""


def measure(
    make: Callable[[Grid], Cases], section: str, names: tuple[str, ...], is_causal: bool
) -> dict[int, list[tuple[float, float]]]:
    """Mean relative error and mean density of each preset, by number of blocks."""
    presets = [load_preset(section, name) for name in names]
    configs = [config.replace(block_m=BLOCK_M, block_n=BLOCK_N, attn_impl="auto") for config in presets if config]
    return {
        blocks: [compare(make(grid), config, None if is_causal else grid) for config in configs]
        for blocks, grid in GRIDS.items()
    }


def compare(cases: Cases, config: PSAConfig, grid: Grid | None) -> tuple[float, float]:
    """Relative error and density, means over the cases; without a grid there is a causal mask."""
    errors, densities, is_causal = [], [], grid is None
    for q, k, v in cases:
        dense = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        out, levels = sparse_attention(q, k, v, config, grid=grid, is_causal=is_causal)
        errors.append(float((out - dense).norm() / dense.norm()))
        densities.append(Choices(q, k, v, is_causal=is_causal).density(levels, config))
    return fmean(errors), fmean(densities)


def page(report: Report) -> str:
    """A table for each kind of input, a row for each number of blocks."""
    lines = heading(report, "Sparse attention on few blocks")
    for name, found in report["inputs"].items():
        columns = [f"{preset}: {what}" for preset in found["presets"] for what in ("density", "error")]
        rows = [
            [blocks, *(cell for error, density in each for cell in (f"{density:.2f}", f"{error:.3f}"))]
            for blocks, each in found["by_blocks"].items()
        ]
        lines += [f"## {name}", "", *table(["key blocks", *columns], rows), ""]
    return "\n".join(lines)


def main() -> None:
    args = options(__doc__).parse_args()
    run, found = Run("few_blocks", args.output), {}
    for name, (make, section, presets, is_causal) in INPUTS.items():
        by_blocks = run.piece(name, measure, make, section, presets, is_causal)
        found[name] = {"presets": presets, "by_blocks": by_blocks}
    run.write({"inputs": found}, page)


if __name__ == "__main__":
    main()
