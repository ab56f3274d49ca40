"""Draws one prompt of the built-in model by several methods at the same cost: `python docs/methods_picture.py`.

Three of 12 denoising steps are dense: the first ones, as published tables have it, or with reuse every fourth, as
refreshes. The others cost a tenth, and every method pays for its estimate. Writes images/methods.png.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from psa_triton import PSAConfig
from psa_triton.config import Reuse
from psa_triton.tools.evaluation.measures import psnr
from psa_triton.tools.generation import DENSE, Attention, find_source, generate_video, load_pipeline, make_requests

COST = 0.1
PROMPT = "a green ring moving right"
SHOWN = (0, 7, 14, 21, 28)
BASE = PSAConfig(block_m=32, block_n=32, importance="pooled", warmup_steps=3)
BUDGET = BASE.replace(mask_mode="budget", budget=COST, importance="representative")
METHODS = {
    "block sparsity, tiles": BASE.replace(rearrange_method="STA", mask_ratios={1: (0.0, 0.09), 0: (0.09, 1.0)}),
    "block sparsity, Gilbert": BASE.replace(mask_ratios={1: (0.0, 0.09), 0: (0.09, 1.0)}),
    "PSA, shares": BASE.replace(
        mask_ratios={1: (0.0, 0.03), 2: (0.03, 0.06), 4: (0.06, 0.14), 8: (0.14, 0.3), 0: (0.3, 1.0)}
    ),
    "PSA, budget": BUDGET,
    "PSA, budget with reuse": BUDGET.replace(warmup_steps=0, reuse=Reuse(refresh_every=4)),
}


def main() -> None:
    """Generate and draw."""
    source = find_source("tiny-wan")
    pipe = load_pipeline(source, device=torch.device("cpu"), dtype=torch.float32, width=96, height=96)
    (request,) = make_requests(source, [PROMPT], seed=7, settings={})
    dense = generate_video(pipe, request, DENSE)
    rows = [("dense", "", dense.frames)]
    for name, config in METHODS.items():
        video = generate_video(pipe, request, Attention(name=name, config=config))
        close = psnr(*(torch.from_numpy(x.frames).permute(0, 3, 1, 2) for x in (dense, video))).mean
        cost = video.cost.run_density_with_estimation
        rows.append((name, f"cost {cost:.1%}\n{close:.1f} dB", video.frames))
        print(rows[-1][:2])
    figure = Figure(figsize=(8, 1.5 * len(rows)), layout="constrained")
    for line, (name, figures, frames) in zip(figure.subplots(len(rows), len(SHOWN)), rows, strict=True):
        for axes, index in zip(line, SHOWN, strict=True):
            axes.imshow(frames[index])
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{name}\n{figures}", rotation=0, ha="right", va="center")
    figure.suptitle(f'"{PROMPT}", {1 - COST:.0%} of attention left out in 9 of 12 steps')
    figure.savefig(Path(__file__).parent / "images" / "methods.png", dpi=100)


if __name__ == "__main__":
    main()
