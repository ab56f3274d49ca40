"""What choosing levels takes, as a share of dense attention: `python benchmarks/choice_cost.py`.

Budget mode and the shares of the seed documents, from q, k and v to levels, and the parts of budget mode by themselves:
estimate of importance, expected errors (one read of k and v), allocation. All in one process, side by side.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F

from psa_triton import PSAConfig, block_importance
from psa_triton.attention import level_choice
from psa_triton.importance.rows import BlockGrid
from psa_triton.levels import choose_levels
from psa_triton.levels.budget import budget_levels, expected_errors
from psa_triton.tools.bench.clock import median_seconds
from psa_triton.tools.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HEADS: Final = 2
DIM: Final = 128


def parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, dense attention first."""
    budget = PSAConfig(mask_mode="budget")
    m, n, scale = budget.block_m, budget.block_n, DIM**-0.5
    importance = block_importance(q, k, block_m=m, block_n=n, method=budget.importance)
    errors = expected_errors(q, k, v, block_n=n, scale=scale)
    grid = BlockGrid(m, n, q.shape[2], k.shape[2], False)

    def choose(config: PSAConfig) -> Callable[[], object]:
        return lambda: choose_levels(q, k, level_choice(config), scale=scale, v=v)

    return {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "budget: estimate": lambda: block_importance(q, k, block_m=m, block_n=n, method=budget.importance),
        "budget: expected errors": lambda: expected_errors(q, k, v, block_n=n, scale=scale),
        "budget: allocation": lambda: budget_levels(importance, errors, grid, budget=0.15),
        "budget": choose(budget),
        "budget of a layer": choose(budget.replace(budget_scope="layer")),
        "shares, pooled": choose(PSAConfig(importance="pooled")),
        "shares, sampled": choose(PSAConfig()),
        "shares, finely_sampled": choose(PSAConfig(importance="finely_sampled")),
        "shares, antidiagonal": choose(PSAConfig(importance="antidiagonal")),
    }


def measure(dtype: str, tokens: int, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each part: its median time, and its share of dense attention's."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, HEADS, tokens, DIM, generator=generator).to(device, DTYPES[dtype]).contiguous() for _ in "qkv"
    )
    seconds = median_seconds(parts(q, k, v), repeats=repeats, device=device)
    return [
        {"dtype": dtype, "tokens": tokens, "part": name, "seconds": s, "share": s / seconds["dense"]}
        for name, s in seconds.items()
    ]


def markdown(report: dict[str, Any]) -> str:
    """Shares by length and dtype."""
    columns = list(dict.fromkeys((row["dtype"], row["tokens"]) for row in report["rows"]))
    share = {(row["dtype"], row["tokens"], row["part"]): row["share"] for row in report["rows"]}
    dense = {(row["dtype"], row["tokens"]): row["seconds"] for row in report["rows"] if row["part"] == "dense"}
    lines = [
        f"# Choosing levels, {report['date'][:10]}",
        "",
        f"`{report['command']}`; {report['hardware']['gpu'] or report['hardware']['cpu']}, "
        f"{report['hardware']['threads']} threads, torch {report['versions']['torch']}. {HEADS} heads of {DIM}, "
        "m = 128, n = 64.",
        "",
        "Share of the time of torch's dense attention, median.",
        "",
        "| part | " + " | ".join(f"{dtype}, {tokens} tokens" for dtype, tokens in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
        "| dense, seconds | " + " | ".join(f"{dense[column]:.3f}" for column in columns) + " |",
    ]
    for part in dict.fromkeys(row["part"] for row in report["rows"]):
        if part != "dense":
            lines.append(f"| {part} | " + " | ".join(f"{share[*column, part]:.2%}" for column in columns) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the Markdown")
    args = parser.parse_args()
    with torch.no_grad():
        rows = [
            row
            for dtype in args.dtypes
            for tokens in args.tokens
            for row in measure(dtype, tokens, args.repeats, args.device)
        ]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/choice_cost.py", *sys.argv[1:]]),
        "hardware": hardware(args.device),
        "versions": versions(),
        "rows": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"choice_cost_{report['date'][:10]}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(report))
    print(f"written: {stem}.json and .md")


if __name__ == "__main__":
    main()
