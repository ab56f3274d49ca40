"""What choosing levels takes, as a share of dense attention: `python benchmarks/choice_cost.py`.

Budget mode and the default shares, from q, k and v to levels, and the parts of budget mode by themselves:
estimate of importance, expected errors (one read of k and v), allocation. All in one process, side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from harness import CPU, DTYPES, Report, Run, heading, options, table

from psa_triton import PSAConfig, block_importance
from psa_triton.blocks import Blocks
from psa_triton.impl import resolve_impl
from psa_triton.levels import levels_of
from psa_triton.levels.budget import budget_levels, expected_errors
from psa_triton.tools.clock import median_seconds

HEADS: Final = 2
DIM: Final = 128


def parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, dense attention first."""
    budget = PSAConfig(mask_mode="budget")
    m, n, scale = budget.block_m, budget.block_n, DIM**-0.5
    importance = block_importance(q, k, block_m=m, block_n=n, method=budget.importance)
    blocks, impl = Blocks.of(q, k, m, n), resolve_impl("auto", q)
    errors = expected_errors(q, k, v, blocks, scale=scale, impl=impl)
    shares = dict(keep_first_block=False, scope="row", impl=impl)

    def choose(config: PSAConfig) -> Callable[[], object]:
        return lambda: levels_of(q, k, v, config)

    return {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "budget: estimate": lambda: block_importance(q, k, block_m=m, block_n=n, method=budget.importance),
        "budget: expected errors": lambda: expected_errors(q, k, v, blocks, scale=scale, impl=impl),
        "budget: allocation": lambda: budget_levels(importance, errors, blocks, 0.15, **shares),
        "budget": choose(budget),
        "budget of a layer": choose(budget.replace(budget_scope="layer")),
        "shares, pooled": choose(PSAConfig(importance="pooled")),
        "shares, sampled": choose(PSAConfig()),
        "shares, finely_sampled": choose(PSAConfig(importance="finely_sampled")),
        "shares, antidiagonal": choose(PSAConfig(importance="antidiagonal")),
    }


def measure(dtype: str, tokens: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each part."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, HEADS, tokens, DIM, generator=generator).to(device, DTYPES[dtype]).contiguous() for _ in "qkv"
    )
    return median_seconds(parts(q, k, v), repeats=repeats, device=device)


def page(report: Report) -> str:
    """Shares by length and dtype."""
    seconds = report["seconds_of_parts"]
    rows = [["dense, seconds", *(f"{found['dense']:.3f}" for found in seconds.values())]]
    for part in list(next(iter(seconds.values())))[1:]:
        rows.append([part, *(f"{found[part] / found['dense']:.2%}" for found in seconds.values())])
    words = f"Share of the time of torch's dense attention, median. {HEADS} heads of {DIM}, m = 128, n = 64."
    return "\n".join([*heading(report, "Choosing levels", words, ""), *table(["part", *seconds], rows), ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=CPU)
    args = parser.parse_args()
    run = Run("choice_cost", args.output, args.device)
    found = {}
    with torch.no_grad():
        for dtype in args.dtypes:
            for tokens in args.tokens:
                name = f"{dtype}, {tokens} tokens"
                found[name] = run.piece(name, measure, dtype, tokens, args.repeats, args.device)
    run.write({"seconds_of_parts": found}, page)


if __name__ == "__main__":
    main()
