"""How much error of attention a video bears: `python benchmarks/amplification.py`.

Videos of the built-in model, without dense steps, against dense ones of the same seed: with noise of a given relative
size added to the output of every self-attention in every step, and with PSA at several budgets, whose error in the same
place is measured along the way. With classifier-free guidance and without. So it can be read off what error 30 dB ask
for, and at what budget attention is that exact.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from diffusers import WanPipeline
from harness import CPU, Report, Run, heading, options, table_of
from torch import Tensor, nn

from psa_triton import PSAConfig, load_preset
from psa_triton.tools.generation import (
    DENSE,
    Attention,
    DenseParts,
    VideoRequest,
    find_source,
    generate_video,
    load_pipeline,
    make_requests,
)

MODEL: Final = "tiny-wan-1k"
PROMPTS: Final = ("a red square moving left", "a blue ring moving up", "a green cross moving right")
NOISE: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2)
BUDGETS: Final = (0.15, 0.3, 0.6, 0.8, 0.9)
SEED: Final = 42


@contextmanager
def attention_outputs(pipe: WanPipeline, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Every self-attention's output, before its projection, goes through `change`."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(inputs[0]), *inputs[1:])

    handles = [block.attn1.to_out[0].register_forward_pre_hook(hook) for block in pipe.transformer.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def first_errors(pipe: WanPipeline, request: VideoRequest, attention: Attention) -> float:
    """Relative L2 error of attention's outputs in the first denoising step, where all that came before is the same.

    That holds for the first layer alone: later ones get what earlier ones made of it, as they do in the whole run.
    """
    short = replace(request, num_inference_steps=1)
    found: dict[str, list[Tensor]] = {}
    for name, how in (("dense", DENSE), ("sparse", attention)):
        outputs = found[name] = []

        def keep(out: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
            outputs.append(out.detach().clone())
            return out

        with attention_outputs(pipe, keep):
            generate_video(pipe, short, how)
    pairs = zip(found["sparse"], found["dense"], strict=True)
    return statistics.mean(float((sparse - dense).norm() / dense.norm()) for sparse, dense in pairs)


def measure(
    pipe: WanPipeline, requests: Sequence[VideoRequest], attentions: dict[str, Attention]
) -> list[dict[str, Any]]:
    """A row for each size of noise and each attention."""
    expected = [generate_video(pipe, request, DENSE).frames for request in requests]

    def row(kind: str, name: str, found: list[Any], error: float, density: float = 1.0) -> dict[str, Any]:
        values = [psnr(video, dense) for video, dense in zip(found, expected, strict=True)]
        guidance = requests[0].guidance_scale
        print(f"guidance {guidance}, {name}: error {error:.3f}, {statistics.mean(values):.1f} dB", flush=True)
        return {"guidance": guidance, "kind": kind, "name": name, "density": density, "error": error, "psnr": values}

    rows = []
    for size in NOISE:
        videos = []
        for request in requests:
            with attention_outputs(pipe, with_noise(size)):
                videos.append(generate_video(pipe, request, DENSE).frames)
        rows.append(row("noise", f"noise {size}", videos, size))
    for name, attention in attentions.items():
        error = statistics.mean(first_errors(pipe, request, attention) for request in requests)
        videos = [generate_video(pipe, request, attention) for request in requests]
        density = statistics.mean(video.cost.run_density_with_estimation or 1.0 for video in videos)
        rows.append(row("psa", name, [video.frames for video in videos], error, density))
    return rows


def sparse_attentions() -> dict[str, Attention]:
    """Budget mode at several budgets, and the default shares, from the first step on; with a dense layer."""
    preset = load_preset(MODEL, "psa_budget")
    assert preset is not None, "a dense preset"
    base = preset.replace(warmup_steps=0)
    configs: dict[str, PSAConfig] = {f"budget {budget:g}": base.replace(budget=budget) for budget in BUDGETS}
    shares = {1: (0.0, 0.1), 2: (0.1, 0.15), 8: (0.15, 0.35), 0: (0.35, 1.0)}
    configs["default shares"] = base.replace(mask_mode="topk", importance="sampled", mask_ratios=shares)
    attentions = {name: Attention(name=name, config=config) for name, config in configs.items()}
    first_dense = DenseParts(dense_layers=(0,))
    for budget in BUDGETS[:2]:
        name = f"budget {budget:g}, first layer dense"
        attentions[name] = Attention(name=name, config=configs[f"budget {budget:g}"], dense_parts=first_dense)
    return attentions


def page(report: Report) -> str:
    """A table for each guidance."""
    words = (
        f"{MODEL}, {report['videos']} videos, no dense steps. Error: relative L2, of self-attention's outputs in the",
        "first step, mean over layers. PSNR to the video with dense attention, mean over videos (least to most).",
    )
    lines = heading(report, "Error of attention and of videos", *words)
    for guidance in dict.fromkeys(row["guidance"] for row in report["rows"]):
        rows = [
            row | {"mean": statistics.mean(row["psnr"]), "least": min(row["psnr"]), "most": max(row["psnr"])}
            for row in report["rows"]
            if row["guidance"] == guidance
        ]
        columns = {
            "density": "{density:.2f}",
            "error": "{error:.3f}",
            "PSNR, dB": "{mean:.1f} ({least:.1f}-{most:.1f})",
        }
        lines += ["", *table_of(rows, {f"guidance {guidance:g}": "{name}"} | columns)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="one video of two steps, to try this script")
    args = parser.parse_args()
    source = find_source(MODEL)
    prompts, settings = (PROMPTS[:1], {"num_inference_steps": 2}) if args.quick else (PROMPTS, {})
    requests = make_requests(source, prompts, seed=SEED, settings=settings)
    size = dict(width=requests[0].width, height=requests[0].height)
    pipe = load_pipeline(source, device=CPU, dtype=torch.float32, **size)
    run, rows = Run("amplification", args.output), []
    with torch.no_grad():
        for guidance in (requests[0].guidance_scale, 1.0):
            guided = [replace(request, guidance_scale=guidance) for request in requests]
            rows += run.piece(f"guidance {guidance:g}", measure, pipe, guided, sparse_attentions())
    run.write({"videos": len(requests), "rows": rows}, page)


if __name__ == "__main__":
    main()
