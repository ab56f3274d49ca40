"""How far sparse attention is from dense attention on short sequences: `python benchmarks/few_blocks.py`.

Sequences of 1, 2, 3, ... key blocks are cut out of the built-in video model's tensors (its first frames, or part of the
first), and made as smooth random fields. Presets are taken as shipped but for their blocks, 64 queries and 32 keys, so
that there are enough of these in 1,152 tokens. The presets of language models see random walks under a causal mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import torch
import torch.nn.functional as F
from harness import Report, Run, heading, options, table
from tensors.tiny_wan import tiny_wan_cases
from torch import Tensor

from psa_triton import PSAConfig, load_preset
from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.levels import read_density

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
Case = tuple[Tensor, Tensor, Tensor]
Grid = tuple[int, int, int]


def presets(section: str, names: tuple[str, ...]) -> dict[str, PSAConfig]:
    loaded = {name: load_preset(section, name) for name in names}
    changes = dict(block_m=BLOCK_M, block_n=BLOCK_N, attn_impl="auto")
    return {name: config.replace(**changes) for name, config in loaded.items() if config is not None}


def video_cases(grid: Grid) -> Iterator[Case]:
    """The first corner of that size of every second layer's tensors."""
    t, h, w = grid
    for case in list(tiny_wan_cases())[::2]:
        if any(size > of for size, of in zip(grid, case.grid, strict=True)):
            raise ValueError(f"grid: expected at most {case.grid}, that of the recorded tensors, got {grid}")
        q, k, v = (x.unflatten(2, case.grid)[:, :, :t, :h, :w].flatten(2, 4) for x in (case.q, case.k, case.v))
        yield q, k, v


def smooth_cases(grid: Grid, seeds: int = 6) -> Iterator[Case]:
    """Gaussian noise on every fourth point of the grid, interpolated."""
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(1, 3 * 2 * 64, *(max(2, -(-size // 4)) for size in grid), generator=generator)
        fine = F.interpolate(coarse, size=grid, mode="trilinear", align_corners=True)[0]
        q, k, v = (2 * x.flatten(2).mT[None] for x in fine.unflatten(0, (3, 2, 64)))
        yield q, k, v


def walk_cases(grid: Grid, seeds: int = 6) -> Iterator[Case]:
    """Noise and its running sum: near tokens are alike."""
    for seed in range(seeds):
        noise = torch.randn(3, 1, 2, math.prod(grid), 64, generator=torch.Generator().manual_seed(seed))
        q, k, v = noise + noise.cumsum(-2) / 8
        yield q, k, v


def measure(cases: list[Case], config: PSAConfig, grid: Grid, is_causal: bool = False) -> tuple[float, float]:
    """Mean relative error and mean density."""
    errors, densities = [], []
    for q, k, v in cases:
        dense = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        out, levels = sparse_attention(q, k, v, config, grid=None if is_causal else grid, is_causal=is_causal)
        errors.append(float((out - dense).norm() / dense.norm()))
        densities.append(float(read_density(levels, Blocks.of(q, k, BLOCK_M, BLOCK_N, is_causal)).mean()))
    return sum(errors) / len(errors), sum(densities) / len(densities)


def measure_all(
    name: str, make: Callable[[Grid], Iterator[Case]], configs: dict[str, PSAConfig], is_causal: bool
) -> dict[int, list[tuple[float, float]]]:
    """Error and density of each preset, by number of blocks."""
    found = {}
    for blocks, grid in GRIDS.items():
        found[blocks] = [measure(list(make(grid)), config, grid, is_causal) for config in configs.values()]
        print(name, blocks, found[blocks], flush=True)
    return found


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
    video = presets("Wan2.1_1.3b", ("psa_balanced", "psa_topk", "psa_budget"))
    text = presets("Qwen2.5-VL", ("psa_balanced", "psa_budget"))
    kinds = {
        "tiny-wan": (video_cases, video, False),
        "smooth fields": (smooth_cases, video, False),
        "random walks, causal": (walk_cases, text, True),
    }
    run = Run("few_blocks", args.output)
    found = {name: run.piece(name, measure_all, name, *how) for name, how in kinds.items()}
    run.write({"inputs": {n: {"presets": list(kinds[n][1]), "by_blocks": x} for n, x in found.items()}}, page)


if __name__ == "__main__":
    main()
