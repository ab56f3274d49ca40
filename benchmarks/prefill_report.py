"""What `prefill_quality.py` found: in words, as tables and as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from prefill_methods import GOAL_DENSITY

GOAL_CHANGE: Final = 0.01
_AT_MOST: Final = GOAL_DENSITY + 0.01
"""A run that ends within this density counts as one at the goal's."""

Row = dict[str, Any]


def markdown(report: dict[str, Any], picture: str) -> str:
    """The whole page."""
    lines = [
        f"# Perplexity after sparse prefill, {report['date'][:10]}",
        "",
        f"`{report['command']}`; {report['model']}, {report['dtype']}, {report['hardware']['cpu']}, torch "
        f"{report['versions']['torch']}, transformers {report['versions']['transformers']}.",
        "",
        "Every token of a text is predicted in one prefill of all of it. Change: of perplexity against dense attention",
        "on the same tokens, ± its standard error over tokens; in the last half the context is long. Divergence: of",
        "predictions from the dense ones (Kullback and Leibler), thousandths of a nat per token, ± its standard error.",
        "Density: groups read over keys visible, mean over queries, heads and layers; then with the estimate of",
        "importance. Methods are brought to a density by a search; goal: a change of at most "
        f"{GOAL_CHANGE:.0%} at {GOAL_DENSITY:g}, and",
        "nearer to dense than levels 1/0 alone.",
    ]
    for text in report["texts"]:
        lines += [
            "",
            f"## {text['text']}: {text['tokens']} tokens, dense {text['perplexity']:.3f}, "
            f"last half {text['perplexity_last_half']:.3f}",
            "",
            *_verdicts(text["rows"]),
        ]
        for group in dict.fromkeys(row["group"] for row in text["rows"]):
            lines += ["", *_table(group, [row for row in text["rows"] if row["group"] == group])]
    return "\n".join([*lines, "", f"![Divergence against density]({picture})", ""])


def _verdicts(rows: list[Row]) -> list[str]:
    """What reaches the goal, and what is nearest to dense with pooled levels, and without."""
    lines = []
    for included, density in (("", "density"), (", estimate included", "density_with_estimation")):
        good = [row for row in rows if row[density] <= _AT_MOST and row["change"] <= GOAL_CHANGE]
        names = "; ".join(f"{row['method']} ({row['group']}) {row['change']:+.2%}" for row in good)
        lines.append(f"* Within {GOAL_CHANGE:.0%} at a density of at most {_AT_MOST:g}{included}: {names or 'none'}.")
        for words, block_sparse in (("pooled levels", False), ("levels 1/0", True)):
            candidates = [row for row in rows if row[density] <= _AT_MOST and row["is_block_sparse"] == block_sparse]
            if candidates:
                best = min(candidates, key=lambda row: row["divergence"])
                lines.append(
                    f"* Nearest to dense with {words} there: {best['method']}, divergence {_divergence(best)}, "
                    f"{_change(best)}."
                )
    return lines


def _table(group: str, rows: list[Row]) -> list[str]:
    lines = [
        f"| {group} | density | with estimate | perplexity | change | last half | divergence |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['method']} | {row['density']:.3f} | {row['density_with_estimation']:.3f} "
            f"| {row['perplexity']:.3f} | {_change(row)} | {row['change_last_half']:+.2%} | {_divergence(row)} |"
        )
    return lines


def _change(row: Row) -> str:
    return f"{row['change']:+.2%} ± {row['standard_error']:.2%}"


def _divergence(row: Row) -> str:
    return f"{1e3 * row['divergence']:.1f} ± {1e3 * row['divergence_standard_error']:.1f}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Divergence from dense predictions against density on the first text: a panel for each group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    text = report["texts"][0]
    groups = list(dict.fromkeys(row["group"] for row in text["rows"]))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(4.6 * len(groups), 4.2), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for panel, group in zip(axes.flat, groups, strict=True):
        rows = [row for row in text["rows"] if row["group"] == group]
        for method, marker in zip(dict.fromkeys(row["method"] for row in rows), "osD^vP*X<>hpd8H", strict=False):
            points = sorted((row["density"], row["divergence"]) for row in rows if row["method"] == method)
            panel.plot(*zip(*points, strict=True), marker=marker, markersize=5, label=method)
        panel.axvline(GOAL_DENSITY, color="0.85", zorder=0)
        panel.set(title=group, xlabel="density")
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    axes.flat[0].set_ylabel("divergence from dense, nats")
    figure.suptitle(f"{text['text']}, {text['tokens']} tokens")
    figure.savefig(path, dpi=110)
    plt.close(figure)
