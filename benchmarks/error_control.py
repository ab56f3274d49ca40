"""What a video's fidelity costs with error control: `python benchmarks/error_control.py`.

Videos of the built-in model against dense ones of the same prompt and seed, over the total cost of attention: density
over the whole run, refreshes, probes and estimates of importance included. Warm-up alone, the last output again
(broadcast), sparse attention with what it lacked at the last refresh, both in one rhythm, and the ladder that a bound
on the measured error climbs; block top-k with the same treatment; and caches of diffusers, which skip whole blocks.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import FirstBlockCacheConfig, WanPipeline
from harness import CPU, Report, Run, heading, options, table

from psa_triton import PSAConfig, load_preset
from psa_triton.config import DEFAULT_PROBE, Reuse
from psa_triton.tools.generation import (
    DENSE,
    Attention,
    VideoRequest,
    find_source,
    generate_video,
    load_pipeline,
    make_requests,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL: Final = "tiny-wan-1k"
PROMPTS: Final = (
    "a red square moving left",
    "a blue ring moving up",
    "a green cross moving right",
    "a yellow square moving down",
    "a blue cross moving left",
    "a red ring moving up",
)
SEEDS: Final = (42, 43)
SCHEDULES: Final = {"12 steps": (12, None), "48 steps": (48, None), "4 steps": (4, None), "12, no guidance": (12, 1.0)}
"""Steps, and the guidance scale if not the model's own."""

Setting = PSAConfig | FirstBlockCacheConfig


def settings(steps: int) -> dict[str, dict[str, Setting]]:
    """What is compared at so many steps, by method and strength."""
    preset = load_preset(MODEL, "psa_budget")
    assert preset is not None, "a dense preset"
    budget = preset.replace(warmup_steps=0)
    top = {1: (0.0, 0.13), 0: (0.13, 1.0)}
    blocks = budget.replace(mask_mode="topk", importance="representative", mask_ratios=top)

    def rhythm(every: int, **more: Any) -> PSAConfig:
        return budget.replace(reuse=Reuse(refresh_every=every, **more))

    every, bounds = {4: (2, 3), 12: (2, 3, 4), 48: (4, 8)}[steps], {4: (0.1, 0.2, 0.4), 12: (0.08, 0.1, 0.13, 0.2)}
    found: dict[str, dict[str, Setting]] = {
        "broadcast": {f"every {n}": rhythm(n, sparse_every=0) for n in every},
        "missing part": {f"every {n}": rhythm(n) for n in every[-1:]},
        "max_error": {f"{bound:g}": budget.bounded(bound) for bound in bounds.get(steps, (0.06, 0.1, 0.15, 0.2))},
        "block top-k, max_error": {"0.1": blocks.bounded(0.1)},
        "first-block cache": {f"{limit:g}": FirstBlockCacheConfig(threshold=limit) for limit in (0.1, 0.2)},
    }
    for name, config in {"PSA after warm-up": budget, "block sparsity after warm-up": blocks}.items():
        found[name] = {f"{n} steps": config.replace(warmup_steps=n) for n in (steps // 4, steps // 2)}
    if steps == 12:
        found["in turn"] = {"every 4": rhythm(4, layer_groups=4)}
        found["max_error 0.1, kept as"] = {
            form: budget.replace(reuse=Reuse(max_error=0.1, keep=form), probe=DEFAULT_PROBE)
            for form in ("fp8", "mean2", "mean4", "mean8")
        }
    if steps == 48:
        found["ladder"] = {f"every {n}": rhythm(n, layer_groups=4, sparse_every=2) for n in (8, 12)}
    return found


def psnr(video: Any, expected: Any) -> float:
    """Of frames in [0, 1], dB."""
    mean_square = float(((video - expected) ** 2).mean())
    return -10 * torch.tensor(mean_square).log10().item()


def cost_with_cache(pipe: WanPipeline, request: VideoRequest, config: FirstBlockCacheConfig) -> tuple[Any, float]:
    """A video with dense attention and a cache, and the share of attention calls that were made."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    blocks = pipe.transformer.blocks
    hooks = [block.attn1.register_forward_pre_hook(count) for block in blocks]
    passes = 1 if request.guidance_scale == 1.0 else 2
    pipe.transformer.enable_cache(config)
    try:
        frames = generate_video(pipe, request, DENSE).frames
    finally:
        pipe.transformer.disable_cache()
        for hook in hooks:
            hook.remove()
    return frames, calls / (len(blocks) * request.num_inference_steps * passes)


def measure(pipe: WanPipeline, request: VideoRequest, setting: Setting, dense: Any) -> dict[str, Any]:
    """What a setting costs and gives in one video."""
    if isinstance(setting, FirstBlockCacheConfig):
        frames, cost = cost_with_cache(pipe, request, setting)
        return {"cost": cost, "psnr": psnr(frames, dense)}
    video = generate_video(pipe, request, Attention(name=MODEL, config=setting))
    summary = video.stats.summary
    return {
        "cost": summary.run_density_with_estimation,
        "psnr": psnr(video.frames, dense),
        "error": summary.measured_error,
        "largest_error": summary.largest_measured_error,
        "ways": summary.ways,
    }


def rows(pieces: dict[tuple[str, str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means over videos."""
    return [
        {
            "schedule": schedule,
            "method": method,
            "strength": strength,
            "cost": statistics.mean(video["cost"] for video in videos),
            "psnr": statistics.mean(video["psnr"] for video in videos),
            "psnrs": [video["psnr"] for video in videos],
            "error": None if videos[0].get("error") is None else statistics.mean(video["error"] for video in videos),
        }
        for (schedule, method, strength), videos in pieces.items()
    ]


def page(report: Report) -> str:
    """A table for each schedule, cheapest first."""
    lines = heading(
        report,
        "Fidelity over the cost of attention, with error control",
        f"{MODEL}, up to {report['videos']} videos a row. Cost: of the whole run with all that is computed, as a share "
        "of dense attention; of a cache, the share of attention calls. PSNR to the dense video, mean (least to "
        "most). Error: relative L2, as the probe measured it, mean over calls that are not exact.",
        "",
        f"![PSNR over cost]({report.get('picture')})",
    )
    for schedule in dict.fromkeys(row["schedule"] for row in report["rows"]):
        shown = sorted((row for row in report["rows"] if row["schedule"] == schedule), key=lambda row: row["cost"])
        cells = [
            [
                f"{row['method']}, {row['strength']}",
                f"{row['cost']:.3f}",
                f"{row['psnr']:.1f} ({min(row['psnrs']):.1f} to {max(row['psnrs']):.1f})",
                "" if row["error"] is None else f"{row['error']:.3f}",
            ]
            for row in shown
        ]
        lines += ["", f"## {schedule}", "", *table(["method", "cost", "PSNR, dB", "error"], cells)]
    return "\n".join(lines) + "\n"


def draw(report: Report) -> Figure:
    """PSNR over cost, a panel for each schedule."""
    from matplotlib.figure import Figure

    schedules = list(dict.fromkeys(row["schedule"] for row in report["rows"]))
    figure = Figure(figsize=(5 * len(schedules), 4.2), layout="constrained")
    panels = figure.subplots(1, len(schedules), squeeze=False)[0]
    methods = list(dict.fromkeys(row["method"] for row in report["rows"]))
    for panel, schedule in zip(panels, schedules, strict=True):
        for place, method in enumerate(methods):
            points = sorted(
                (row["cost"], row["psnr"])
                for row in report["rows"]
                if row["schedule"] == schedule and row["method"] == method
            )
            if points:
                panel.plot(*zip(*points, strict=True), "o-", color=f"C{place}", label=method, markersize=4)
        panel.set(title=schedule, xlabel="cost of attention over the run, dense = 1", xlim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR to dense, dB")
    panels[0].legend(fontsize=7)
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop measuring after these, and report what there is"
    )
    parser.add_argument("--methods", nargs="+", default=None, help="some of the methods, by their names in the table")
    args = parser.parse_args()
    run = Run("error_control", args.output)
    deadline = time.monotonic() + 60 * args.minutes
    source = find_source(MODEL)
    size = make_requests(source, PROMPTS[:1], seed=0, settings={})[0]
    pipe = load_pipeline(source, device=CPU, dtype=torch.float32, width=size.width, height=size.height)
    pieces: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with torch.no_grad():
        for prompt in PROMPTS[: args.prompts]:
            for seed in SEEDS[: args.seeds]:
                for schedule in args.schedules:
                    measure_all(
                        run, pipe, requests(source, prompt, seed, schedule), schedule, pieces, args.methods, deadline
                    )
    found = {"videos": args.prompts * args.seeds, "rows": rows(pieces)}
    run.write(found, page, draw)


def requests(source: Any, prompt: str, seed: int, schedule: str) -> VideoRequest:
    """The video of a prompt."""
    steps, guidance = SCHEDULES[schedule]
    request = make_requests(source, (prompt,), seed=seed, settings={"num_inference_steps": steps})[0]
    return request if guidance is None else replace(request, guidance_scale=guidance)


def measure_all(
    run: Run,
    pipe: WanPipeline,
    request: VideoRequest,
    schedule: str,
    pieces: dict[tuple[str, str, str], list[dict[str, Any]]],
    methods: list[str] | None,
    deadline: float,
) -> None:
    """All settings on one video, each a piece of the run."""
    dense: list[Any] = []

    def video(setting: Setting) -> dict[str, Any]:
        if not dense:
            dense.append(generate_video(pipe, request, DENSE).frames)
        return measure(pipe, request, setting, dense[0])

    for method, strengths in settings(request.num_inference_steps).items():
        if methods is not None and method not in methods:
            continue
        for strength, setting in strengths.items():
            name = f"{schedule}, {request.prompt}, {request.seed}, {method}, {strength}"
            if run.has(name) or time.monotonic() < deadline:
                pieces.setdefault((schedule, method, strength), []).append(run.piece(name, video, setting))


if __name__ == "__main__":
    main()
