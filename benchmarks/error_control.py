"""What a video's fidelity costs with error control: `python benchmarks/error_control.py`.

Videos of the built-in model against dense ones of the same prompt and seed, over the total cost of attention: density
over the whole run, refreshes, probes and estimates of importance included. Warm-up alone, the last output again
(broadcast), sparse attention with what it lacked at the last refresh, both in one rhythm, and the ladder that a bound
on the measured error climbs; block top-k with the same treatment; and caches of diffusers, which skip whole blocks.
The cost of the whole transformer, in multiply-adds, stands beside it.
"""

from __future__ import annotations

import ast
import hashlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from itertools import islice, product
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    WanPipeline,
)
from harness import Report, Run, curves, heading, options, table_of
from tensors.tiny_wan import built_in

from psa_triton import PSAConfig, load_preset
from psa_triton.config import DEFAULT_PROBE, BudgetRow, Reuse
from psa_triton.tools.builtin import tiny_wan_path
from psa_triton.tools.evaluation.measures import fidelity
from psa_triton.tools.generation import DENSE, Attention, VideoRequest, find_source, generate_video, make_requests

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    "24 steps": ("tiny-wan", 24, None),
    "12 steps": ("tiny-wan-1k", 12, None),
    "48 steps": ("tiny-wan-1k", 48, None),
    "4 steps": ("tiny-wan-1k", 4, None),
    "12 steps, no guidance": ("tiny-wan-1k", 12, 1.0),
    "48 steps, no guidance": ("tiny-wan-1k", 48, 1.0),
}
"""The model, by its size; steps; the guidance scale if not the model's own."""

BLOCKS: Final = {"tiny-wan": (128, 64), "tiny-wan-1k": (32, 32)}
"""Tokens of a query block and of a key block: 1,152 would be nine of 128."""

Scores = dict[str, float | None]
"""What a video costs and how close it is, each over the dense one's."""

MakeCache = Callable[[WanPipeline, VideoRequest], Any]
"""Makes the configuration of one of diffusers' caches."""

Settings = dict[str, dict[str, PSAConfig | MakeCache]]
"""By method and strength."""

AT_BOTH_ENDS: Final = {
    4: (((0, 1), 1), ((0, 2), 2)),
    12: (((0, 3, 9), 2), ((0, 2, 4, 10), 2), ((0, 2, 4, 10), 1), ((0, 2, 4, 7, 10), 1)),
    24: (((0, 6, 18), 4), ((0, 4, 8, 20), 4), ((0, 4, 8, 20), 2), ((0, 4, 8, 14, 20), 1)),
    48: (((0, 8, 40), 8), ((0, 8, 16, 40), 4), ((0, 4, 8, 14, 24, 40, 44), 2)),
}
"""By the number of steps: those that refresh, and how many others there are to a sparse one."""


def settings(model: str, steps: int, *, guided: bool) -> Settings:
    """What is compared at so many steps."""
    shipped = load_preset(model, "psa_refresh")
    assert shipped is not None, "a dense preset"
    block_m, block_n = BLOCKS[model]
    budget = PSAConfig(block_m=block_m, block_n=block_n, mask_mode="budget", importance="representative")
    shares = {1: (0.0, 0.13), 0: (0.13, 1.0)}
    blocks = budget.replace(mask_mode="topk", importance="representative", mask_ratios=shares)
    # Of those that refresh as often, the shortest.
    every = list({-(-steps // n): n for n in (12, 8, 6, 4, 3, 2)}.values())
    some = every[1:4]
    usual = some[len(some) // 2]
    regular = {f"every {n}": {"refresh_every": n} for n in some}
    uneven = {
        f"{', '.join(map(str, at))}; sparse every {n}": {"refresh_steps": at, "sparse_every": n}
        for at, n in AT_BOTH_ENDS[steps]
    }

    def by_step(budget_of: Callable[[int], float]) -> PSAConfig:
        rows = (BudgetRow(start=step / steps, budgets=(budget_of(step),) * LAYERS) for step in range(steps))
        return budget.replace(budget_table=tuple(rows))

    def reusing(rhythms: Mapping[str, dict[str, Any]], config: PSAConfig = budget) -> dict[str, PSAConfig]:
        return {name: config.replace(reuse=Reuse(**how)) for name, how in rhythms.items()}

    def bounded(*bounds: float, **how: Any) -> dict[str, PSAConfig]:
        rhythms = {f"{bound:g}": {"max_error": bound} | how for bound in bounds}
        return reusing(rhythms, budget.replace(probe=DEFAULT_PROBE))

    found: Settings = {
        "warm-up": {f"{n} steps": budget.replace(warmup_steps=n) for n in sorted({-(-steps // k) for k in (6, 3, 2)})},
        "refresh only": {f"every {usual}": by_step(lambda step: budget.budget if step % usual else 1.0)},
        "broadcast": reusing({f"every {n}": {"refresh_every": n, "sparse_every": 0} for n in every}),
        "difference": reusing(regular),
        "more at both ends": reusing(uneven),
        "more at both ends, budget .24, then .105": reusing(
            dict(islice(uneven.items(), 1)), by_step(lambda step: 0.24 if step < steps / 4 else 0.105)
        ),
        "block top-k, difference": reusing(regular, blocks),
        "block top-k, more at both ends": reusing(dict(islice(uneven.items(), 3)), blocks),
        "difference, kept as": reusing(
            {form: {"refresh_every": usual, "keep": form} for form in ("fp8", "mean2", "mean4", "mean8")}
        ),
        "psa_refresh": {"as shipped": shipped},
        "max_error": bounded(0.1, 0.2),
        "max_error, 2.5 times it in the middle": bounded(0.1, 0.15, middle_tolerance=2.5),
        "first-block cache": {"0.1": lambda pipe, request: FirstBlockCacheConfig(threshold=0.1)},
        "TaylorSeer": {f"every {n}": partial(taylor_seer, n) for n in every[-2:]},
        "MagCache": {"0.1": mag_cache},
    }
    if not guided:  # it keeps one output, whichever pass that is of
        found["Pyramid Attention Broadcast"] = {f"every {n}": partial(pyramid_broadcast, n) for n in every[-2:]}
    return found


def taylor_seer(every: int, pipe: WanPipeline, request: VideoRequest) -> TaylorSeerCacheConfig:
    """First-order prediction of what attention and feed-forward of each block give."""
    return TaylorSeerCacheConfig(
        cache_interval=every,
        disable_cache_before_step=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"blocks\.\d+\.(attn1|attn2|ffn)"],
    )


def pyramid_broadcast(every: int, pipe: WanPipeline, request: VideoRequest) -> PyramidAttentionBroadcastConfig:
    """Broadcast with projections, in the middle of the schedule."""
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=every, current_timestep_callback=lambda: pipe.current_timestep
    )


def mag_cache(pipe: WanPipeline, request: VideoRequest) -> MagCacheConfig:
    """With ratios of the video itself, and so better than it could be for a new one."""
    steps = request.num_inference_steps
    calibration = MagCacheConfig(calibrate=True, num_inference_steps=steps)
    with cached(pipe, calibration), redirect_stdout(StringIO()) as printed:
        generate_video(pipe, request, DENSE)
    ratios = next(line for line in printed.getvalue().splitlines() if line.startswith("[1.0,"))
    return MagCacheConfig(threshold=0.1, num_inference_steps=steps, mag_ratios=ast.literal_eval(ratios))


@contextmanager
def cached(pipe: WanPipeline, config: Any) -> Iterator[None]:
    """With one of diffusers' caches in the transformer."""
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def counted(pipe: WanPipeline) -> Iterator[Counter[str]]:
    """Multiply-adds of the transformer's forwards inside, by what its linear layers are given.

    `attention` is self-attention without projections, as if it were dense; `others` all else.
    """
    work: Counter[str] = Counter()
    queries = 0

    def count(name: str, layer: torch.nn.Linear, given: tuple[torch.Tensor]) -> None:
        nonlocal queries
        *batch, tokens, _ = given[0].shape
        work["others"] += given[0].numel() * layer.out_features
        if name.endswith("to_q"):
            queries = tokens * math.prod(batch)
        elif name.endswith("to_k"):  # queries against keys, and weights against values
            work["attention" if "attn1" in name else "others"] += 2 * queries * tokens * layer.out_features

    with ExitStack() as hooks:
        for name, layer in pipe.transformer.blocks.named_modules():
            if isinstance(layer, torch.nn.Linear):
                hooks.callback(layer.register_forward_pre_hook(partial(count, name)).remove)
        yield work


@dataclass
class Video:
    """One video, and what it took."""

    frames: torch.Tensor
    attention: float
    """Multiply-adds of self-attention."""
    whole: float
    """Of all of the transformer."""
    seconds: float
    error: float | None
    """Of attention, measured; None of a dense run."""


def make_video(pipe: WanPipeline, request: VideoRequest, setting: PSAConfig | MakeCache | None) -> Video:
    """With sparse attention or a cache; without, dense."""
    config = setting if isinstance(setting, PSAConfig) else None
    cache = nullcontext() if config or not setting else cached(pipe, setting(pipe, request))
    with cache, counted(pipe) as work:
        began = time.process_time()
        made = generate_video(pipe, request, Attention(name="compared", config=config))
        seconds = time.process_time() - began
    density, error = 1.0, None
    if config:
        density, error = made.cost.run_density_with_estimation, made.cost.measured_error
    attention = work["attention"] * density
    return Video(torch.from_numpy(made.frames), attention, attention + work["others"], seconds, error)


def score(
    pipe: WanPipeline, request: VideoRequest, setting: PSAConfig | MakeCache, dense: Callable[[], Video]
) -> Scores:
    """Of one video with a setting."""
    reference, video = dense(), make_video(pipe, request, setting)
    scores = fidelity(reference.frames, video.frames)
    return {
        "cost": video.attention / reference.attention,
        "whole": video.whole / reference.whole,
        "seconds": video.seconds / reference.seconds,
        **{name: scores[name].mean for name in ("psnr", "ssim", "st_lpips")},
        "error": video.error,
    }


def rows(found: Mapping[tuple[str, str], list[Scores]]) -> list[dict[str, Any]]:
    """Means over videos, by method and strength, cheapest first."""
    means = []
    for (method, strength), videos in found.items():
        of_all = {name: mean([video[name] for video in videos]) for name in videos[0]}
        psnrs = [video["psnr"] for video in videos]
        means.append({"method": method, "strength": strength} | of_all | {"psnrs": psnrs})
    return sorted(means, key=itemgetter("cost"))


def mean(values: list[float | None]) -> float | None:
    """None where there is none: nothing is measured of a run whose calls are all exact."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def page(report: Report) -> str:
    """A table, cheapest first."""
    words = (
        f"{report['model']}, transformer {report['weights']}, {report['videos']} videos. "
        "Attention: what it cost over the run with all that is computed, as a share of dense attention's. Transformer: "
        "multiply-adds of all of it, likewise. Time: CPU seconds of the whole run by one thread, likewise. PSNR, SSIM "
        "and ST-LPIPS to the dense video of the same seed, means (PSNR: least to most). Error: relative L2, as the "
        "probe measured it, mean over calls that are not exact."
    )
    columns = {
        "method": "{method}, {strength}",
        "attention": "{cost:.3f}",
        "transformer": "{whole:.3f}",
        "time": "{seconds:.2f}",
        "PSNR, dB": "{psnr:.1f} ({least:.1f} to {most:.1f})",
        "SSIM": "{ssim}",
        "ST-LPIPS": "{st_lpips}",
        "error": "{error}",
    }
    cases = [
        row
        | {"least": min(row["psnrs"]), "most": max(row["psnrs"])}
        | {name: "" if row[name] is None else f"{row[name]:.3f}" for name in ("ssim", "st_lpips", "error")}
        for row in report["rows"]
    ]
    lines = heading(report, f"Fidelity over the cost of attention, {report['schedule']}", words)
    return "\n".join([*lines, "", f"![PSNR over cost]({report['picture']})", "", *table_of(cases, columns), ""])


def draw(report: Report) -> Figure:
    """PSNR over the cost of attention, and over that of the transformer."""
    costs = {"cost": "attention", "whole": "the whole transformer"}
    points = [(costs[cost], row["method"], row[cost], row["psnr"]) for cost in costs for row in report["rows"]]
    return curves(points, "cost, dense = 1", "PSNR to dense, dB", log_y=False)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds")
    parser.add_argument("--schedule", choices=SCHEDULES, default="24 steps")
    parser.add_argument("--methods", nargs="+", default=None, help="some of the methods, by their names in the table")
    args = parser.parse_args()
    seeds, prompts = SEEDS[: args.seeds], PROMPTS[: args.prompts]
    mode = f"{args.schedule}, {len(prompts)}x{len(seeds)}".replace(",", "").replace(" ", "_")
    run = Run("error_control", args.output, mode=mode)
    model, steps, guidance = SCHEDULES[args.schedule]
    source = find_source(model)
    compared = settings(model, steps, guided=guidance is None)
    if unknown := set(args.methods or ()) - compared.keys():
        parser.error(f"--methods: expected some of {', '.join(compared)}, got {', '.join(sorted(unknown))}")
    changes = {"num_inference_steps": steps} | ({} if guidance is None else {"guidance_scale": guidance})
    requests = [
        make_requests(source, (prompt,), seed=seed, settings=changes)[0] for seed, prompt in product(seeds, prompts)
    ]
    pipe = built_in()
    weights = (tiny_wan_path() / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    found: dict[tuple[str, str], list[Scores]] = {}
    for request in requests:
        dense = cache(partial(make_video, pipe, request, None))
        for method in (name for name in compared if name in (args.methods or compared)):
            for strength, setting in compared[method].items():
                name = f"{request.prompt}, {request.seed}, {method}, {strength}"
                scores = run.piece(name, score, pipe, request, setting, dense)
                found.setdefault((method, strength), []).append(scores)
    made_with = {"schedule": args.schedule, "model": model, "weights": hashlib.sha256(weights).hexdigest()[:12]}
    run.write(made_with | {"videos": len(requests), "rows": rows(found)}, page, draw)


if __name__ == "__main__":
    main()
