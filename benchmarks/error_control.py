"""What a video's fidelity costs with error control: `python benchmarks/error_control.py --schedule "12 steps"`.

Videos of the built-in model against dense ones of the same prompt and seed, over the total cost of attention: density
over the whole run, refreshes, probes and estimates of importance included. Warm-up alone, the last output again
(broadcast), sparse attention with what it lacked at the last refresh, both in one rhythm, and the ladder that a bound
on the measured error climbs; block top-k with the same treatment; and caches of diffusers, which skip whole blocks.
The cost of the whole transformer, in multiply-adds, stands beside it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    WanPipeline,
)
from harness import CPU, Report, Run, heading, options, table

from psa_triton import PSAConfig, load_preset
from psa_triton.config import DEFAULT_PROBE, BudgetRow, Reuse
from psa_triton.tools.builtin import tiny_wan_path
from psa_triton.tools.evaluation.measures import fidelity
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
LAYERS: Final = 4
PROMPTS: Final = (
    "a red square moving left",
    "a blue ring moving up",
    "a green cross moving right",
    "a yellow square moving down",
    "a blue cross moving left",
    "a red ring moving up",
)
SEEDS: Final = (42, 43)
SCHEDULES: Final = {
    "12 steps": (12, None),
    "48 steps": (48, None),
    "4 steps": (4, None),
    "12 steps, no guidance": (12, 1.0),
    "48 steps, no guidance": (48, 1.0),
}
"""Steps, and the guidance scale if not the model's own."""

SCORES: Final = {"psnr": "PSNR, dB", "ssim": "SSIM", "st_lpips": "ST-LPIPS"}

CACHES: Final = ("first-block cache", "TaylorSeer", "MagCache", "Pyramid Attention Broadcast")
"""Of diffusers."""

WEIGHTS: Final = "diffusion_pytorch_model.safetensors"

MakeCache = Callable[[WanPipeline, VideoRequest], Any]
"""Makes the configuration of one of diffusers' caches."""

Settings = dict[str, dict[str, PSAConfig | MakeCache]]
"""By method and strength."""


def settings(steps: int, *, guided: bool) -> Settings:
    """What is compared at so many steps."""
    preset, shipped = (load_preset(MODEL, name) for name in ("psa_budget", "psa_refresh"))
    assert preset is not None and shipped is not None, "a dense preset"
    budget = preset.replace(warmup_steps=0)
    shares = {1: (0.0, 0.13), 0: (0.13, 1.0)}
    blocks = budget.replace(mask_mode="topk", importance="representative", mask_ratios=shares)
    # Of those that refresh as often, the shortest.
    every = list({-(-steps // n): n for n in (12, 8, 6, 4, 3, 2)}.values())
    some = every[1:4]
    usual = some[len(some) // 2]
    ends = {
        4: (((0, 1), 1), ((0, 2), 2)),
        12: (((0, 3, 9), 2), ((0, 2, 4, 10), 2), ((0, 2, 4, 10), 1), ((0, 2, 4, 7, 10), 1)),
        48: (((0, 8, 40), 8), ((0, 8, 16, 40), 4), ((0, 4, 8, 14, 24, 40, 44), 2)),
    }[steps]
    regular = {f"every {n}": {"refresh_every": n} for n in some}
    uneven = {
        f"{', '.join(map(str, at))}; sparse every {n}": {"refresh_steps": at, "sparse_every": n} for at, n in ends
    }

    def by_step(budgets: Iterable[float]) -> PSAConfig:
        rows = (BudgetRow(start=step / steps, budgets=(share,) * LAYERS) for step, share in enumerate(budgets))
        return budget.replace(budget_table=tuple(rows))

    def reusing(rhythms: Mapping[str, dict[str, Any]], config: PSAConfig = budget) -> dict[str, PSAConfig]:
        return {
            name: config.replace(reuse=Reuse(**how), probe=DEFAULT_PROBE if "max_error" in how else 0.0)
            for name, how in rhythms.items()
        }

    found: Settings = {
        "warm-up": {f"{n} steps": budget.replace(warmup_steps=n) for n in sorted({-(-steps // k) for k in (6, 3, 2)})},
        "refresh only": {
            f"every {usual}": by_step(1.0 if step % usual == 0 else budget.budget for step in range(steps))
        },
        "broadcast": reusing({f"every {n}": {"refresh_every": n, "sparse_every": 0} for n in every}),
        "difference": reusing(regular),
        "more at both ends": reusing(uneven),
        "more at both ends, budget .24, then .105": reusing(
            dict(islice(uneven.items(), 1)), by_step(0.24 if step < steps / 4 else 0.105 for step in range(steps))
        ),
        "block top-k, difference": reusing(regular, blocks),
        "block top-k, more at both ends": reusing(dict(islice(uneven.items(), 3)), blocks),
        "difference, kept as": reusing(
            {form: {"refresh_every": usual, "keep": form} for form in ("fp8", "mean2", "mean4", "mean8")}
        ),
        "psa_refresh": {"as shipped": shipped},
        "max_error": reusing({f"{bound:g}": {"max_error": bound} for bound in (0.1, 0.2)}),
        "max_error, 2.5 times it in the middle": reusing(
            {f"{bound:g}": {"max_error": bound, "middle_tolerance": 2.5} for bound in (0.1, 0.15)}
        ),
        "first-block cache": {"0.1": lambda pipe, request: FirstBlockCacheConfig(threshold=0.1)},
        "TaylorSeer": {f"every {n}": taylor_seer(n) for n in every[-2:]},
        "MagCache": {"0.1": mag_cache},
    }
    if not guided:  # it keeps one output, whichever pass that is of
        found["Pyramid Attention Broadcast"] = {f"every {n}": pyramid_broadcast(n) for n in every[-2:]}
    return found


def taylor_seer(every: int) -> MakeCache:
    """First-order prediction of what attention and feed-forward of each block give."""
    return lambda pipe, request: TaylorSeerCacheConfig(
        cache_interval=every,
        disable_cache_before_step=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"blocks\.\d+\.(attn1|attn2|ffn)"],
    )


def pyramid_broadcast(every: int) -> MakeCache:
    """Broadcast with projections, in the middle of the schedule."""
    return lambda pipe, request: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=every, current_timestep_callback=lambda: pipe.current_timestep
    )


def mag_cache(pipe: WanPipeline, request: VideoRequest) -> MagCacheConfig:
    """With ratios of the video itself, and so better than it could be for a new one."""
    steps = request.num_inference_steps
    with io.StringIO() as printed:
        with (
            contextlib.redirect_stdout(printed),
            cached(pipe, MagCacheConfig(calibrate=True, num_inference_steps=steps)),
        ):
            generate_video(pipe, request, DENSE)
        ratios = next(line for line in printed.getvalue().splitlines() if line.startswith("[1.0,"))
    return MagCacheConfig(threshold=0.1, num_inference_steps=steps, mag_ratios=ast.literal_eval(ratios))


@contextlib.contextmanager
def cached(pipe: WanPipeline, config: Any) -> Iterator[None]:
    """With one of diffusers' caches in the transformer."""
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@dataclass
class Work:
    """Multiply-adds of a transformer, where they are: self-attention without projections, and all else."""

    attention: float = 0.0
    others: float = 0.0

    @contextlib.contextmanager
    def counted(self, pipe: WanPipeline) -> Iterator[None]:
        """Of the forwards inside, by what their linear layers are given; attention as if it were dense."""
        queries = 0

        def count(name: str, layer: torch.nn.Linear, given: torch.Tensor) -> None:
            nonlocal queries
            self.others += given.numel() * layer.out_features
            tokens = given.numel() // given.shape[-1]
            if name.endswith("to_q"):
                queries = tokens
            elif name.endswith("to_k"):
                work = 2.0 * queries * tokens // given.shape[0] * layer.out_features
                if "attn1" in name:
                    self.attention += work
                else:
                    self.others += work

        hooks = [
            layer.register_forward_pre_hook(lambda layer, given, name=name: count(name, layer, given[0]))
            for name, layer in pipe.transformer.blocks.named_modules()
            if isinstance(layer, torch.nn.Linear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def measure(
    pipe: WanPipeline, request: VideoRequest, setting: PSAConfig | MakeCache | None
) -> tuple[Any, Work, dict[str, Any]]:
    """A video's frames, the work that it took, and what is known of its attention; None for dense."""
    work = Work()
    config = setting if isinstance(setting, PSAConfig) else None
    cache = contextlib.nullcontext() if config or not setting else cached(pipe, setting(pipe, request))
    with cache, work.counted(pipe):
        began = time.process_time()
        video = generate_video(pipe, request, Attention(name=MODEL, config=config))
        found: dict[str, Any] = {"seconds": time.process_time() - began}
    if config:
        work.attention *= video.stats.summary.run_density_with_estimation
        found["error"] = video.stats.summary.measured_error
    return torch.from_numpy(video.frames), work, found


def score(
    request: VideoRequest, pipe: WanPipeline, setting: PSAConfig | MakeCache, dense: Callable[[], Any]
) -> dict[str, Any]:
    """What a setting costs and gives in one video."""
    reference, all_work, dense_found = dense()
    frames, work, found = measure(pipe, request, setting)
    scores = fidelity(reference, frames)
    whole = (work.attention + work.others) / (all_work.attention + all_work.others)
    return {
        "cost": work.attention / all_work.attention,
        "whole": whole,
        **{name: scores[name].mean for name in SCORES},
        **found,
        "seconds": found["seconds"] / dense_found["seconds"],
    }


Videos = dict[tuple[str, str], list[dict[str, Any]]]
"""What was found of each video, by method and strength."""


def measure_all(run: Run, pipe: WanPipeline, request: VideoRequest, compared: Settings, found: Videos) -> None:
    """All settings on one video, each a piece of the run."""

    @cache
    def dense() -> tuple[Any, Work, dict[str, Any]]:
        return measure(pipe, request, None)

    for method, strengths in compared.items():
        for strength, setting in strengths.items():
            name = f"{request.prompt}, {request.seed}, {method}, {strength}"
            scores = run.piece(name, score, request, pipe, setting, dense)
            found.setdefault((method, strength), []).append(scores)


def rows(found: Videos) -> list[dict[str, Any]]:
    """Means over videos, cheapest first."""
    names = ("cost", "whole", "seconds", *SCORES, "error")
    means = [
        {
            "method": method,
            "strength": strength,
            **{name: mean([video.get(name) for video in videos]) for name in names},
            "psnrs": [video["psnr"] for video in videos],
        }
        for (method, strength), videos in found.items()
    ]
    return sorted(means, key=lambda row: row["cost"])


def mean(values: list[float | None]) -> float | None:
    """None where there is none: nothing is measured of a run whose calls are all exact."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def page(report: Report) -> str:
    """A table, cheapest first."""
    words = (
        f"{MODEL}, transformer {report['weights']}, {report['videos']} videos. "
        "Attention: what it cost over the run with all that is computed, as a share of dense attention's. Transformer: "
        "multiply-adds of all of it, likewise. Time: CPU seconds of the whole run by one thread, likewise. PSNR, SSIM "
        "and ST-LPIPS to the dense video of the same seed, means (PSNR: least to most). Error: relative L2, as the "
        "probe measured it, mean over calls that are not exact."
    )
    cells = [
        [
            f"{row['method']}, {row['strength']}",
            f"{row['cost']:.3f}",
            f"{row['whole']:.3f}",
            f"{row['seconds']:.2f}",
            f"{row['psnr']:.1f} ({min(row['psnrs']):.1f} to {max(row['psnrs']):.1f})",
            *("" if row[name] is None else f"{row[name]:.3f}" for name in ("ssim", "st_lpips", "error")),
        ]
        for row in report["rows"]
    ]
    title = f"Fidelity over the cost of attention, {report['schedule']}"
    columns = ["method", "attention", "transformer", "time", *SCORES.values(), "error"]
    return "\n".join(
        [*heading(report, title, words), "", f"![PSNR over cost]({report['picture']})", "", *table(columns, cells), ""]
    )


def draw(report: Report) -> Figure:
    """PSNR over the cost of attention, and over that of the transformer."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    for panel, cost in zip(figure.subplots(1, 2, sharey=True), ("cost", "whole"), strict=True):
        for place, method in enumerate(dict.fromkeys(row["method"] for row in report["rows"])):
            points = sorted((row[cost], row["psnr"]) for row in report["rows"] if row["method"] == method)
            style = "s:" if method in CACHES else "o-"
            panel.plot(*zip(*points, strict=True), style, color=colormaps["tab20"](place), label=method, markersize=5)
        panel.set(xlabel=f"cost of {'attention' if cost == 'cost' else 'the transformer'}, dense = 1", xlim=(0, 1))
        panel.grid(alpha=0.3)
    figure.axes[0].set(ylabel="PSNR to dense, dB", title=report["schedule"])
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds")
    parser.add_argument("--schedule", choices=SCHEDULES, default="12 steps")
    parser.add_argument("--methods", nargs="+", default=None, help="some of the methods, by their names in the table")
    args = parser.parse_args()
    seeds, prompts = SEEDS[: args.seeds], PROMPTS[: args.prompts]
    videos = list(product(seeds, prompts))
    mode = f"{args.schedule}, {len(prompts)}x{len(seeds)}".replace(",", "").replace(" ", "_")
    run = Run("error_control", args.output, mode=mode)
    source = find_source(MODEL)
    steps, guidance = SCHEDULES[args.schedule]
    compared = settings(steps, guided=guidance is None)
    if args.methods is not None:
        compared = {name: strengths for name, strengths in compared.items() if name in args.methods}
    first = make_requests(source, PROMPTS[:1], seed=0, settings={})[0]
    pipe = load_pipeline(source, device=CPU, dtype=torch.float32, width=first.width, height=first.height)
    weights = hashlib.sha256((tiny_wan_path() / "transformer" / WEIGHTS).read_bytes()).hexdigest()[:12]
    found: Videos = {}
    for number, (seed, prompt) in enumerate(videos, 1):
        (request,) = make_requests(source, (prompt,), seed=seed, settings={"num_inference_steps": steps})
        if guidance is not None:
            request = replace(request, guidance_scale=guidance)
        measure_all(run, pipe, request, compared, found)
        report = {"schedule": args.schedule, "weights": weights, "videos": number, "rows": rows(found)}
        run.write(report, page, draw, last=number == len(videos))


if __name__ == "__main__":
    main()
