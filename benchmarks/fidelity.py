"""Error of attention at equal total cost, budget mode against shares: `python benchmarks/fidelity.py`.

Queries, keys and values are those of a vision transformer over two clips, of the built-in video model at several
denoising steps, of SmolLM2 reading a text, and some made to break things (`benchmarks/tensors/`, `smollm2.py`). Dense
attention is computed for sampled query blocks alone; under a causal mask for all, and there the first key block is read
in full. Every method pays for its estimate of importance. `--quick` tries everything on little in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from real.measure import relative_errors
from real.sample import take_sample
from smollm2 import tapped_qkv
from tensors import AttentionTensors
from tensors.adversarial import CASES, adversarial_tensors
from tensors.frames import CLIPS
from tensors.tiny_wan import tiny_wan_cases
from tensors.vit import LAYERS, VARIANTS, vit_cases
from torch import Tensor

from psa_triton import PSAConfig, block_importance, pyramid_attention, select_levels
from psa_triton.blocks import Blocks
from psa_triton.importance import estimation_cost
from psa_triton.levels import exempt_levels, read_density
from psa_triton.levels import levels_of as psa_levels
from psa_triton.tools.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
TOTAL: Final = 0.15
CURVE: Final = (0.06, 0.10, TOTAL, 0.30)
TEXT_LAYERS: Final = (3, 12, 21, 28)
_BISECTIONS: Final = 12
ESTIMATORS: Final = ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative")


@dataclass(frozen=True)
class Method:
    """One way to choose levels. `weights` are shares of levels, times what the cost allows; None for a budget."""

    name: str
    estimator: str = "representative"
    weights: tuple[tuple[int, float], ...] | None = None
    scope: str = "row"
    pool_correction: str = "none"
    block_n: int = 64


SEED: Final = ((1, 0.10), (2, 0.05), (8, 0.20))
WIDE: Final = ((1, 0.05), (2, 0.05), (4, 0.15), (8, 0.30))
METHODS: Final = (
    Method("block top-k, sampled", "sampled", ((1, 1.0),)),
    Method("block top-k, representative", weights=((1, 1.0),)),
    Method("seed's shares, sampled", "sampled", SEED),
    Method("wide shares, representative", weights=WIDE),
    *(Method(f"budget, {name}", name) for name in ("sampled", "pooled", "representative")),
    Method("budget of a layer", scope="layer"),
    Method("budget, corrected", pool_correction="isotropic"),
    Method("budget, n = 32", block_n=32),
    Method("budget of a head, corrected, n = 32", scope="head", pool_correction="isotropic", block_n=32),
)
BASELINE, SEED_PRESET, OURS = METHODS[1].name, METHODS[2].name, "budget, representative"


@dataclass(frozen=True)
class Inputs:
    """One attention, cut into blocks, with what dense attention makes of it."""

    q: Tensor
    k: Tensor
    v: Tensor
    expected: Tensor
    scale: float
    is_causal: bool
    block_m: int

    @property
    def tokens(self) -> tuple[int, int]:
        return self.q.shape[2], self.k.shape[2]


@dataclass(frozen=True)
class InputSet:
    """Attentions over which errors are averaged."""

    name: str
    cases: Callable[[], Iterator[AttentionTensors]]
    block_m: int = 128
    block_n: int | None = None
    """Instead of the methods' own, for sequences too short for them."""


def prepare(x: AttentionTensors, block_m: int, blocks: int) -> Inputs:
    """Query blocks spread over the sequence in Gilbert order; all of them under a causal mask."""
    if not x.is_causal:
        sample = take_sample(x, "Gilbert", block_m=block_m, blocks=blocks)
        return Inputs(sample.q, sample.k, sample.v, sample.expected, x.scale, False, block_m)
    dense = torch.nn.functional.scaled_dot_product_attention(
        x.q, x.k, x.v, is_causal=True, scale=x.scale, enable_gqa=True
    )
    return Inputs(x.q, x.k, x.v, dense, x.scale, True, block_m)


def text_cases(tokens: int, layers: tuple[int, ...]) -> Iterator[AttentionTensors]:
    """SmolLM2's attention in some layers."""
    for layer, (q, k, v) in zip(layers, tapped_qkv(layers, tokens=tokens), strict=True):
        yield AttentionTensors(f"SmolLM2/layer {layer}", q, k, v, None, is_causal=True, scale=q.shape[-1] ** -0.5)


def input_sets(*, quick: bool) -> list[InputSet]:
    """Everything that is measured."""
    if quick:
        vit = partial(vit_cases, ("bikes",), (4,), ("rope",), grid=(4, 16, 16))
        text = InputSet("SmolLM2, causal", partial(text_cases, 1024, (12,)), block_m=32, block_n=32)
        return [InputSet("bikes/rope", vit, block_m=32), text]
    vit = [
        InputSet(f"ViT, {clip}, {variant}", partial(vit_cases, (clip,), LAYERS, (variant,)))
        for clip in CLIPS
        for variant in VARIANTS
    ]
    made = [InputSet(f"made: {name}", partial(_made, name)) for name in CASES]
    video = InputSet("built-in video model", tiny_wan_cases, block_m=32, block_n=32)
    text = InputSet("SmolLM2, causal", partial(text_cases, 8192, TEXT_LAYERS), block_m=32, block_n=32)
    return [*vit, video, text, *made]


def _made(name: str) -> Iterator[AttentionTensors]:
    yield adversarial_tensors(name)


def levels_of(x: Inputs, method: Method, total: float) -> Tensor:
    """Levels that cost at most `total`, the estimate included."""
    if method.weights is None:
        config = PSAConfig(
            mask_mode="budget",
            block_m=x.block_m,
            block_n=method.block_n,
            budget=total,
            budget_scope=method.scope,
            importance=method.estimator,
            keep_first_block=x.is_causal,
        )
        return psa_levels(x.q, x.k, x.v, config, is_causal=x.is_causal, scale=x.scale)
    return shared_levels(x, method, total - estimation_cost(method.estimator, x.block_m, method.block_n))


def shared_levels(x: Inputs, method: Method, density: float) -> Tensor:
    """Levels by shares, scaled to the greatest density that is at most `density`."""
    sizes = dict(block_m=x.block_m, block_n=method.block_n)
    call = sizes | dict(is_causal=x.is_causal)
    importance = block_importance(x.q, x.k, method=method.estimator, scale=x.scale, **call)
    assert method.weights is not None
    low, high = 0.0, 1.0 / method.weights[0][1]
    for _ in range(_BISECTIONS):
        factor = (low + high) / 2
        fits = float(_read(x, method, _by_shares(x, method, importance, factor)).mean()) <= density
        low, high = (factor, high) if fits else (low, factor)
    return _by_shares(x, method, importance, low)


def _by_shares(x: Inputs, method: Method, importance: Tensor, factor: float) -> Tensor:
    ratios, start = {}, 0.0
    for level, weight in method.weights or ():
        end = min(start + weight * factor, 1.0)
        ratios[level] = (start, end)
        start = end
    levels = select_levels(importance, ratios | {0: (start, 1.0)}, mode="topk")
    return exempt_levels(levels, _blocks(x, method), keep_first_block=x.is_causal)


def _read(x: Inputs, method: Method, levels: Tensor) -> Tensor:
    return read_density(levels, _blocks(x, method))


def _blocks(x: Inputs, method: Method) -> Blocks:
    return Blocks.of(x.q, x.k, x.block_m, method.block_n, x.is_causal)


def measure(x: Inputs, method: Method, total: float) -> tuple[float, list[float]]:
    """Total cost, and the relative L2 error of each head."""
    levels = levels_of(x, method, total)
    found = pyramid_attention(
        x.q,
        x.k,
        x.v,
        levels,
        block_m=x.block_m,
        block_n=method.block_n,
        is_causal=x.is_causal,
        scale=x.scale,
        pool_correction=method.pool_correction,
    )
    cost = float(_read(x, method, levels).mean()) + estimation_cost(method.estimator, x.block_m, method.block_n)
    return cost, list(relative_errors(found, x.expected))


def measure_set(inputs: InputSet, blocks: int) -> list[dict[str, Any]]:
    """A row for every method, at the one total cost."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for case in inputs.cases():
        x = prepare(case, inputs.block_m, blocks)
        for method in METHODS:
            run = method if inputs.block_n is None else replace(method, block_n=inputs.block_n)
            found.setdefault(method.name, []).append(measure(x, run, TOTAL))
        print(f"{case.name} measured", flush=True)
    return [{"set": inputs.name, "method": name, **summarise(points)} for name, points in found.items()]


def measure_curve(cases: Iterator[AttentionTensors], block_m: int, blocks: int) -> list[dict[str, Any]]:
    """Budget mode with every estimator at several total costs."""
    found: dict[tuple[str, float], list[tuple[float, list[float]]]] = {}
    for case in cases:
        x = prepare(case, block_m, blocks)
        for estimator in ESTIMATORS:
            for total in CURVE:
                if total > estimation_cost(estimator, block_m, 64):
                    found.setdefault((estimator, total), []).append(measure(x, Method(estimator, estimator), total))
    return [
        {"estimator": estimator, "total": total, **summarise(points)} for (estimator, total), points in found.items()
    ]


def summarise(points: list[tuple[float, list[float]]]) -> dict[str, float]:
    """Means over attentions and heads."""
    return {
        "cost": round(statistics.mean(cost for cost, _ in points), 4),
        "error": round(statistics.mean(e for _, errors in points for e in errors), 5),
        "worst": round(max(e for _, errors in points for e in errors), 5),
    }


def markdown(report: dict[str, Any]) -> str:
    """Errors by method and set, and those of budget mode over those of the two rivals."""
    sets = list(dict.fromkeys(row["set"] for row in report["rows"]))
    error = {(row["set"], row["method"]): row["error"] for row in report["rows"]}
    lines = [
        f"# Fidelity, {report['date'][:10]}",
        f"Relative L2 error of attention's output, mean over heads and layers, at a total cost of {TOTAL}.",
        f"`{report['command']}` on {report['hardware']['cpu']}.",
        "",
        "| method | " + " | ".join(sets) + " |",
        "|---" * (len(sets) + 1) + "|",
    ]
    for method in METHODS:
        lines.append(f"| {method.name} | " + " | ".join(f"{error[name, method.name]:.4f}" for name in sets) + " |")
    for rival in (BASELINE, SEED_PRESET):
        ratios = (error[name, OURS] / max(error[name, rival], 1e-9) for name in sets)
        lines.append(f"| *{OURS} over {rival}* | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    lines += [
        "",
        "Budget mode by estimator and total cost, on the ViT:",
        "",
        "| estimator | total | error |",
        "|---|---|---|",
    ]
    lines += [f"| {row['estimator']} | {row['total']} | {row['error']:.4f} |" for row in report["curve"]]
    return "\n".join(lines) + "\n"


def draw(report: dict[str, Any], file: Path) -> None:
    """Left: error by set; right: error over cost by estimator."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    shown = (BASELINE, SEED_PRESET, METHODS[3].name, OURS, "budget of a head, corrected, n = 32")
    sets = list(dict.fromkeys(row["set"] for row in report["rows"]))
    for i, name in enumerate(shown):
        errors = {row["set"]: row["error"] for row in report["rows"] if row["method"] == name}
        bars.barh([j + 0.15 * i for j in range(len(sets))], [errors[s] for s in sets], height=0.15, label=name)
    bars.set_yticks([j + 0.3 for j in range(len(sets))], sets)
    bars.set(xlabel=f"relative error at total cost {TOTAL}", xscale="log", xlim=(1e-3, None))
    bars.invert_yaxis()
    for estimator in ESTIMATORS:
        points = [row for row in report["curve"] if row["estimator"] == estimator]
        curves.plot([p["cost"] for p in points], [p["error"] for p in points], marker="o", label=estimator)
    curves.set(xlabel="total cost", ylabel="relative error, ViT", xscale="log", yscale="log")
    bars.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    curves.legend(fontsize="small")
    for axes in (bars, curves):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little of everything, to try this script")
    parser.add_argument("--blocks", type=int, default=64, help="query blocks of each head that are looked at")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON, the Markdown and the picture")
    args = parser.parse_args()
    began = time.monotonic()
    with torch.no_grad():
        rows = [row for inputs in input_sets(quick=args.quick) for row in measure_set(inputs, args.blocks)]
        options = dict(grid=(4, 16, 16)) if args.quick else {}
        layers = LAYERS[1:2] if args.quick else LAYERS[1::2]
        curve = measure_curve(vit_cases(layers=layers, **options), 128, max(1, args.blocks // 8))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    stem = args.output / f"fidelity_{now[:10]}"
    report = {
        "date": now,
        "command": shlex.join(["python", "benchmarks/fidelity.py", *sys.argv[1:]]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "seconds": round(time.monotonic() - began),
        "blocks": args.blocks,
        "total": TOTAL,
        "rows": rows,
        "curve": curve,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(report))
    draw(report, stem.with_suffix(".png"))
    print(f"written: {stem}.json, .md and .png")


if __name__ == "__main__":
    main()
