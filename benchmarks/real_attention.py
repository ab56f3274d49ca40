"""Error of sparse attention at equal cost on real tensors: `python benchmarks/real_attention.py`.

Queries, keys and values are those of a pretrained vision transformer over two natural clips, of the built-in video
model, of SmolLM2 reading a text, and some made to break things (`benchmarks/tensors/`, `smollm2.py`). Dense attention
is computed for sampled query blocks alone; under a causal mask for all, and there the first key block is read in full.
Every way to be sparse is scaled until its total cost, estimation included, is the wanted one. `--groups` chooses
questions; `--quick` tries everything on tiny inputs in a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch
from harness import Report, Run, curves, heading, options, table
from real.inputs import InputSet, input_sets
from real.methods import Method, Row, measure_set
from shares import BLOCK_SPARSE, DEFAULT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_COST: Final = 0.15
"""Total cost at which methods stand in the tables."""
COSTS: Final = (0.06, 0.10, SHOWN_COST, 0.30)
QUICK_COSTS: Final = (SHOWN_COST, 0.30)
WIDE: Final = {1: 0.05, 2: 0.05, 4: 0.15, 8: 0.30}
"""Cost .15 too, with half of the default's full blocks spent on coarse levels for many more."""
PAPER_MASS: Final = {1: 0.4, 2: 0.1, 4: 0.1, 8: 0.2}
"""Shares of the importance mass: those of `psa_balanced` for Wan."""
BLOCKS, PUBLISHED = Method("block sparsity (levels 1/0)", BLOCK_SPARSE), Method("default shares", DEFAULT)
BASE: Final = Method("wide shares", WIDE)
"""What groups on blocks, order, estimator and cap vary."""
BUDGET: Final = Method("budget", None, mode="budget", importance="representative")

GROUPS: Final[dict[str, tuple[Method, ...]]] = {
    "levels": (BLOCKS, PUBLISHED, Method("default shares of mass", PAPER_MASS, mode="thresholdbound"), BASE),
    "instead of dropping": (
        PUBLISHED,
        *(replace(PUBLISHED, name=f"default shares, rest at {level}", rest=level) for level in (16, 32, 64)),
        BASE,
        replace(BASE, name="wide shares, rest at 64", rest=64),
    ),
    "key blocks": tuple(
        replace(method, name=f"{name}, n = {n}", block_n=n)
        for name, method in (("block sparsity", BLOCKS), ("wide", BASE))
        for n in (128, 64, 32)
    ),
    "token order": tuple(
        replace(BASE, name=order, order=order) for order in ("raster", "Gilbert", "STA", "SemanticAware", "Hybrid")
    ),
    "estimator": tuple(
        replace(BASE, name=name, importance=name)
        for name in ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative", "exact")
    ),
    "similarity cap": tuple(
        replace(method, name=f"{method.name}, {'with' if cap else 'without'} cap", use_sim_mask=cap)
        for method in (PUBLISHED, BASE)
        for cap in (False, True)
    ),
    "budget": (
        replace(BLOCKS, name="block top-k", importance="representative"),
        replace(PUBLISHED, name="default shares, sampled", importance="sampled"),
        replace(BASE, name="wide shares, representative", importance="representative"),
        BUDGET,
        replace(BUDGET, name="budget of a layer", budget_scope="layer"),
        replace(BUDGET, name="budget, corrected", pool_correction="isotropic"),
        replace(BUDGET, name="budget, n = 32", block_n=32),
        replace(
            BUDGET, name="of a head, corrected, n = 32", budget_scope="head", pool_correction="isotropic", block_n=32
        ),
    ),
    "estimator of a budget": tuple(
        replace(BUDGET, name=name, importance=name)
        for name in ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative")
    ),
}
"""By the question that a group answers. The same way may stand in several under other names; it is measured once."""
FITTING: Final = {
    "vit": tuple(GROUPS),
    "text": ("budget",),
    "other": ("levels", "instead of dropping", "estimator", "budget"),
}
"""Groups by the kind of a set: some inputs are too small or too odd for the questions of the others."""


def measure(inputs: InputSet, groups: Sequence[str], costs: Sequence[float], blocks: int) -> list[Row]:
    """Rows of `measure_set` for the methods of `groups` that fit the set and its blocks, each with its group."""
    listed = [(group, m) for group in groups if group in FITTING[inputs.kind] for m in GROUPS[group]]
    listed = [(group, m) for group, m in listed if m.coarsest <= (inputs.block_n or m.block_n)]
    distinct = {_settings(method): method for _, method in listed}
    found = measure_set(inputs, distinct, costs, blocks)
    return [
        row | {"group": group, "method": method.name}
        for group, method in listed
        for row in found
        if row["method"] == _settings(method)
    ]


def _settings(method: Method) -> str:
    """A method without its name: what makes two the same."""
    return str(replace(method, name=""))


def page(report: Report) -> str:
    """A picture, and a table for each kind of inputs."""
    words = (
        "Relative L2 error of the attention output against dense attention: mean over heads and layers. Cost is",
        "a share of dense attention's multiply-adds: what is read, the estimate of importance, and finding the",
        f"order. Tables are at a total cost of {SHOWN_COST:g}; a dash: the method costs more, however little it",
        "reads. Vision transformer: four layers, six heads, 20,736 tokens (16x36x36) of two clips; `rope`: with a",
        "3D rotary embedding on queries and keys. `exact` importance is a lower bound that none can have for free.",
    )
    lines = [*heading(report, "Real attention", *words), "", f"![Error against cost]({report['picture']})"]
    if report["vit_sets"]:
        lines += ["", "## Vision transformer", "", *_table(report, report["vit_sets"], mean=True)]
    if report["other_sets"]:
        lines += [
            *("", "## The built-in video model, text, random inputs, and inputs made to break sparse attention", ""),
            *("Made inputs have values that are noise: where attention is flat all that is left out is lost.", ""),
            *_table(report, report["other_sets"], mean=False),
        ]
    return "\n".join([*lines, ""])


def _table(report: Report, sets: list[str], *, mean: bool) -> list[str]:
    """A column a set, and their mean; methods without a number in any are left out."""
    columns = {name: [name] for name in sets} | ({"mean": sets} if mean else {})
    lines = []
    for group in report["groups"]:
        cells = [[m.name, *(_cell(_mean(report, group, m, of)) for of in columns.values())] for m in GROUPS[group]]
        if cells := [line for line in cells if set(line[1:]) != {"-"}]:
            lines += [[f"**{group}**", *[""] * len(columns)], *cells]
    return table(["", *columns], lines)


def _cell(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _mean(report: Report, group: str, method: Method, sets: list[str], cost: float = SHOWN_COST) -> float | None:
    """Mean error over sets; None where one of them lacks the method at that cost."""
    wanted = (group, method.name, cost, True)
    found = [row for row in report["rows"] if (row["group"], row["method"], row["wanted"], row["reached"]) == wanted]
    errors = [row["error"] for row in found if row["set"] in sets]
    return sum(errors) / len(errors) if len(errors) == len(sets) else None


def draw(report: Report) -> Figure:
    """A panel for each group: error against cost, mean over the vision transformer's sets, or else over the others."""
    shown = report["vit_sets"] or report["other_sets"]
    points = [
        (group, method.name, cost, error)
        for group in report["groups"]
        for method in GROUPS[group]
        for cost in report["costs"]
        if (error := _mean(report, group, method, shown, cost)) is not None
    ]
    words = f"relative error of the output, mean over {', '.join(shown)}"
    return curves(points, "total cost, share of dense attention", words, line=SHOWN_COST)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny inputs and two costs, to try this script")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="questions")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="names of inputs; by default all")
    parser.add_argument("--blocks", type=int, default=16, help="query blocks of each head that are looked at")
    args = parser.parse_args()
    costs = QUICK_COSTS if args.quick else COSTS
    run, rows = Run("real_attention", args.output), []
    sets: dict[str, list[str]] = {"vit_sets": [], "other_sets": []}
    with torch.no_grad():
        for inputs in input_sets(quick=args.quick):
            if args.sets and inputs.name not in args.sets:
                continue
            rows += run.piece(inputs.name, measure, inputs, args.groups, costs, args.blocks)
            sets["vit_sets" if inputs.kind == "vit" else "other_sets"].append(inputs.name)
    run.write({"blocks": args.blocks, "costs": costs, "groups": args.groups, **sets, "rows": rows}, page, draw)


if __name__ == "__main__":
    main()
