"""Error of attention at equal total cost, budget mode against shares: `python benchmarks/fidelity.py`.

Queries, keys and values are those of a vision transformer over two clips, of the built-in video model at several
denoising steps, of SmolLM2 reading a text, and some made to break things (`benchmarks/tensors/`, `smollm2.py`). Dense
attention is computed for sampled query blocks alone; under a causal mask for all, and there the first key block is read
in full. Every method pays for its estimate of importance. `--quick` tries everything on little in a minute or two.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from harness import Report, Run, heading, options, table
from real.inputs import QUICK_GRID, InputSet, made_sets, text_set, video_set, vit_sets
from real.methods import Method, measure_set
from shares import BLOCK_SPARSE, DEFAULT
from tensors.vit import LAYERS, vit_cases

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOTAL: Final = 0.15
CURVE: Final = (0.06, 0.10, TOTAL, 0.30)
ESTIMATORS: Final = ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative")
WIDE: Final = {1: 0.05, 2: 0.05, 4: 0.15, 8: 0.30}
BEST: Final = "representative"
BASELINE: Final = Method("block top-k, representative", BLOCK_SPARSE, importance=BEST)
PUBLISHED: Final = Method("default shares, sampled", DEFAULT, importance="sampled")
SHARES: Final = Method("wide shares, representative", WIDE, importance=BEST)
OURS: Final = Method("budget, representative", None, importance=BEST)
FINEST: Final = Method(
    "budget of a head, corrected, n = 32",
    None,
    importance=BEST,
    budget_scope="head",
    pool_correction="isotropic",
    block_n=32,
)
METHODS: Final = (
    Method("block top-k, sampled", BLOCK_SPARSE, importance="sampled"),
    BASELINE,
    PUBLISHED,
    SHARES,
    *(Method(f"budget, {name}", None, importance=name) for name in ("sampled", "pooled")),
    OURS,
    Method("budget of a layer", None, importance=BEST, budget_scope="layer"),
    Method("budget, corrected", None, importance=BEST, pool_correction="isotropic"),
    Method("budget, n = 32", None, importance=BEST, block_n=32),
    FINEST,
)


def input_sets(*, quick: bool) -> list[InputSet]:
    """Everything that is measured."""
    video, made = ([], []) if quick else ([video_set()], made_sets(quick=False))
    return [*vit_sets(quick=quick), *video, text_set(quick=quick), *made]


def page(report: Report) -> str:
    """Errors by method and set, and those of budget mode over those of the two rivals."""
    sets = list(dict.fromkeys(row["set"] for row in report["rows"]))
    error = {(row["set"], row["method"]): row["error"] for row in report["rows"]}
    rows = [[method.name, *(f"{error[name, method.name]:.4f}" for name in sets)] for method in METHODS]
    for rival in (BASELINE, PUBLISHED):
        ratios = (error[name, OURS.name] / max(error[name, rival.name], 1e-9) for name in sets)
        rows.append([f"*{OURS.name} over {rival.name}*", *(f"{ratio:.2f}" for ratio in ratios)])
    words = f"Relative L2 error of attention's output, mean over heads and layers, at a total cost of {TOTAL}."
    curve = [[row["method"], str(row["wanted"]), f"{row['error']:.4f}"] for row in report["curve"]]
    return "\n".join(
        [
            *heading(report, "Fidelity", words, ""),
            *table(["method", *sets], rows),
            *("", f"![Error by set and by estimator]({report['picture']})", ""),
            *("Budget mode by estimator and total cost, on the ViT:", ""),
            *table(["estimator", "total", "error"], curve),
            "",
        ]
    )


def draw(report: Report) -> Figure:
    """Left: error by set; right: error over cost by estimator."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    sets = list(dict.fromkeys(row["set"] for row in report["rows"]))
    for i, method in enumerate((BASELINE, PUBLISHED, SHARES, OURS, FINEST)):
        errors = {row["set"]: row["error"] for row in report["rows"] if row["method"] == method.name}
        places = [j + 0.15 * i for j in range(len(sets))]
        bars.barh(places, [errors[name] for name in sets], height=0.15, label=method.name)
    bars.set_yticks([j + 0.3 for j in range(len(sets))], sets)
    bars.set(xlabel=f"relative error at total cost {TOTAL}", xscale="log", xlim=(1e-3, None))
    bars.invert_yaxis()
    for estimator in ESTIMATORS:
        points = [row for row in report["curve"] if row["method"] == estimator]
        curves.plot([p["cost"] for p in points], [p["error"] for p in points], marker="o", label=estimator)
    curves.set(xlabel="total cost", ylabel="relative error, ViT", xscale="log", yscale="log")
    bars.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    curves.legend(fontsize="small")
    for axes in (bars, curves):
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything, to try this script")
    parser.add_argument("--blocks", type=int, default=64, help="query blocks of each head that are looked at")
    args = parser.parse_args()
    run, rows = Run("fidelity", args.output), []
    methods = {method.name: method for method in METHODS}
    some = (
        partial(vit_cases, layers=LAYERS[1:2], grid=QUICK_GRID)
        if args.quick
        else partial(vit_cases, layers=LAYERS[1::2])
    )
    estimators = {name: Method(name, None, importance=name) for name in ESTIMATORS}
    with torch.no_grad():
        for inputs in input_sets(quick=args.quick):
            rows += run.piece(inputs.name, measure_set, inputs, methods, (TOTAL,), args.blocks)
        few = max(1, args.blocks // 8)
        curve = run.piece("estimators", measure_set, InputSet("ViT", some), estimators, CURVE, few)
    run.write({"blocks": args.blocks, "total": TOTAL, "rows": rows, "curve": curve}, page, draw)


if __name__ == "__main__":
    main()
