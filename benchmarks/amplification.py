"""How much error of attention a video bears: `python benchmarks/amplification.py`.

Videos of the built-in model, without dense steps, against dense ones of the same seed: with noise of a given relative
size added to the output of every self-attention in every step, and with PSA at several budgets, whose error in the same
place is measured along the way. With classifier-free guidance and without. So it can be read off what error 30 dB ask
for, and at what budget attention is that exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from statistics import mean
from typing import Any, Final

import torch
from diffusers import WanPipeline
from harness import Report, Run, heading, options, table_of
from tensors.tiny_wan import MODEL, built_in
from torch import Tensor
from torch.nn import Module

from psa_triton import PSAConfig
from psa_triton.tools.generation import (
    DENSE,
    Attention,
    DenseParts,
    VideoRequest,
    find_source,
    generate_video,
    make_requests,
)

PROMPTS: Final = ("a red square moving left", "a blue ring moving up", "a green cross moving right")
NOISE: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2)
BUDGETS: Final = (0.15, 0.3, 0.6, 0.8, 0.9)
STEPS: Final = 12
SEED: Final = 42


@contextmanager
def attention_outputs(pipe: WanPipeline, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Every self-attention's output, before its projection, goes through `change`."""

    def hook(module: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(inputs[0]), *inputs[1:])

    with ExitStack() as handles:
        for block in pipe.transformer.blocks:
            handles.callback(block.attn1.to_out[0].register_forward_pre_hook(hook).remove)
        yield


def with_noise(size: float) -> Callable[[Tensor], Tensor]:
    """Adds noise whose norm is `size` times the output's."""
    generator = torch.Generator().manual_seed(0)

    def change(out: Tensor) -> Tensor:
        noise = torch.randn(out.shape, generator=generator)
        return out + noise * (size * out.norm() / noise.norm())

    return change


def psnr(video: Any, expected: Any) -> float:
    """Of frames in [0, 1], dB."""
    mean_square = float(((video - expected) ** 2).mean())
    return -10 * torch.tensor(mean_square).log10().item()


def first_error(pipe: WanPipeline, request: VideoRequest, attention: Attention) -> float:
    """Relative L2 error of self-attention's outputs in the first denoising step, mean over layers.

    All that came before is the same for the first layer alone: later ones get what earlier ones made of it, as they do
    in the whole run.
    """
    found: list[Tensor] = []

    def keep(out: Tensor) -> Tensor:
        found.append(out.detach().clone())
        return out

    with attention_outputs(pipe, keep):
        for each in (attention, DENSE):
            generate_video(pipe, replace(request, num_inference_steps=1), each)
    pairs = zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True)
    return mean(float((sparse - dense).norm() / dense.norm()) for sparse, dense in pairs)


def measure(pipe: WanPipeline, requests: Sequence[VideoRequest]) -> list[dict[str, Any]]:
    """A row for each size of noise and each sparse attention."""
    guidance = requests[0].guidance_scale
    expected = [generate_video(pipe, request, DENSE).frames for request in requests]

    def row(kind: str, name: str, density: float, error: float, found: list[Any]) -> dict[str, Any]:
        values = [psnr(video, dense) for video, dense in zip(found, expected, strict=True)]
        print(f"guidance {guidance}, {name}: error {error:.3f}, {mean(values):.1f} dB", flush=True)
        return {"guidance": guidance, "kind": kind, "name": name, "density": density, "error": error, "psnr": values}

    rows = []
    for size in NOISE:
        frames = []
        for request in requests:
            with attention_outputs(pipe, with_noise(size)):
                frames.append(generate_video(pipe, request, DENSE).frames)
        rows.append(row("noise", f"noise {size}", 1.0, size, frames))
    for attention in sparse_attentions():
        error = mean(first_error(pipe, request, attention) for request in requests)
        videos = [generate_video(pipe, request, attention) for request in requests]
        density = mean(video.cost.run_density_with_estimation or 1.0 for video in videos)
        rows.append(row("psa", attention.name, density, error, [video.frames for video in videos]))
    return rows


def sparse_attentions() -> list[Attention]:
    """Budget mode at several budgets, and the default shares, from the first step on; then with a dense layer."""
    base = PSAConfig(mask_mode="budget", importance="representative")
    budgets = [Attention(name=f"budget {budget:g}", config=base.replace(budget=budget)) for budget in BUDGETS]
    shares = {1: (0.0, 0.1), 2: (0.1, 0.15), 8: (0.15, 0.35), 0: (0.35, 1.0)}
    default = base.replace(mask_mode="topk", importance="sampled", mask_ratios=shares)
    first_dense = DenseParts(dense_layers=(0,))
    partly = [
        replace(sparse, name=f"{sparse.name}, first layer dense", dense_parts=first_dense) for sparse in budgets[:2]
    ]
    return [*budgets, Attention(name="default shares", config=default), *partly]


def page(report: Report) -> str:
    """A table for each guidance."""
    words = (
        f"{MODEL}, {report['videos']} videos of {STEPS} steps, none of them dense. Error: relative L2, of",
        "self-attention's outputs in the first step, mean over layers. PSNR to the video with dense attention, mean",
        "over videos (least to most).",
    )
    columns = {"density": "{density:.2f}", "error": "{error:.3f}", "PSNR, dB": "{mean:.1f} ({least:.1f}-{most:.1f})"}
    lines = heading(report, "Error of attention and of videos", *words)
    for guidance, found in groupby(report["rows"], itemgetter("guidance")):
        rows = [row | {"mean": mean(row["psnr"]), "least": min(row["psnr"]), "most": max(row["psnr"])} for row in found]
        lines += ["", *table_of(rows, {f"guidance {guidance:g}": "{name}"} | columns)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="one small video of two steps, to try this script")
    args = parser.parse_args()
    prompts, settings = PROMPTS, {"num_inference_steps": STEPS}
    if args.quick:
        prompts, settings = PROMPTS[:1], {"num_inference_steps": 2, "width": 96, "height": 96}
    requests = make_requests(find_source(MODEL), prompts, seed=SEED, settings=settings)
    pipe, run, rows = built_in(), Run("amplification", args.output), []
    with torch.no_grad():
        for guidance in (requests[0].guidance_scale, 1.0):
            guided = [replace(request, guidance_scale=guidance) for request in requests]
            rows += run.piece(f"guidance {guidance:g}", measure, pipe, guided)
    run.write({"videos": len(requests), "rows": rows}, page)


if __name__ == "__main__":
    main()
