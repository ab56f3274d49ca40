"""Where is each shipped preset faster than dense attention, and does PSA stand aside where it is not?

`python benchmarks/break_even.py`, and on a processor with AVX-512 again as one without would run it, by
`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/break_even.py`.

Dense attention and the whole sparse operator (levels chosen anew each time) run side by side in one process, on tensors
that attend to their surroundings as those of video models do; tokens are in order already, as inside a model with PSA
attached. Times are the least of interleaved rounds: at these lengths a call takes milliseconds, and anything else that
runs on the machine takes as long. The costs in `psa_triton/integrations/break_even.py` are made so that nothing that
runs sparse here takes 5% longer than dense attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import add, itemgetter
from typing import Any

import torch.nn.functional as F
from choices import Choices
from harness import CPU, DTYPES, Report, Run, heading, options, table

from psa_triton import PSAConfig
from psa_triton.attention import sparse_attention
from psa_triton.integrations.rules import DenseRules
from psa_triton.presets import load_presets_file
from psa_triton.products import instructions
from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.clock import seconds_by_round
from psa_triton.tools.shapes import AttentionShape, known_shapes

HEADS = 4
GRIDS = [(8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 32)]
"""1,024 to 8,192 visual tokens."""

Row = dict[str, Any]
"""One preset at one length."""


def shipped_presets() -> Iterator[tuple[str, PSAConfig, AttentionShape]]:
    """Each sparse preset of a video model with some of its heads; those that are alike once, by all names."""
    shapes = {shape.section: shape for shape in known_shapes() if not shape.is_causal}
    sections = load_presets_file().sections
    alike: dict[tuple[PSAConfig, int, int], list[str]] = {}
    for name, shape in shapes.items():
        for preset, described in sections[name].attention_configs.items():
            if (config := described.config()) is not None:
                measured = config.replace(use_rearrange=False), shape.dim, shape.prefix_tokens
                alike.setdefault(measured, []).append(f"{name}/{preset}")
    for (config, *_), names in alike.items():
        yield ", ".join(names), config, shapes[names[0].split("/")[0]].with_heads(HEADS)


def measure(preset: str, config: PSAConfig, shape: AttentionShape, dtype: str) -> Row:
    q, k, v = local_inputs(shape, device=CPU, dtype=DTYPES[dtype])
    prefix = shape.prefix_tokens
    _, levels = sparse_attention(q, k, v, config, prefix_tokens=prefix)
    functions = {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "sparse": lambda: sparse_attention(q, k, v, config, prefix_tokens=prefix),
    }
    rounds = max(3, min(20, 20_000 // shape.tokens))
    dense, sparse = map(min, seconds_by_round(functions, rounds=rounds, device=CPU).values())
    rules = DenseRules(kind="diffusion", config=config)
    return {
        "preset": preset,
        "dim": shape.dim,
        "dtype": dtype,
        "visual_tokens": shape.tokens - prefix,
        "prefix_tokens": prefix,
        "density": Choices(q, k, v).density(levels, config),
        "dense_seconds": dense,
        "sparse_seconds": sparse,
        "speedup": dense / sparse,
        # None if `impl="auto"` runs it sparse.
        "dense_because": rules.of_length(shape.tokens, config, CPU, DTYPES[dtype], prefix),
    }


def least_in_auto(cases: Sequence[Row]) -> float | None:
    """The worst speed-up of what `impl="auto"` does not run dense; None if it runs all dense."""
    return min((case["speedup"] for case in cases if case["dense_because"] is None), default=None)


def page(report: Report) -> str:
    """A row a preset and type, a column a length."""
    rows, speeds = [], {}
    for same, of_lengths in groupby(report["cases"], itemgetter("preset", "dim", "prefix_tokens", "dtype")):
        cases = list(of_lengths)
        speeds = {f"{case['visual_tokens']:,}": "{speedup:.2f} ({density:.2f})".format(**case) for case in cases}
        dense = [" d" if case["dense_because"] else "" for case in cases]
        worst = least_in_auto(cases)
        rows.append([*map(str, same), *map(add, speeds.values(), dense), "-" if worst is None else f"{worst:.2f}"])
    words = (
        f"Speed of the whole sparse operator over dense attention (density), by visual tokens; {HEADS} heads;",
        f"{report['instructions']}. d: `auto` runs dense there. The last column is the worst of the others.",
        "",
    )
    columns = ["preset", "head", "text", "type", *speeds, "worst in auto"]
    return "\n".join([*heading(report, "Break-even lengths", *words), *table(columns, rows), ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--lengths", type=int, default=len(GRIDS), help="how many lengths, shortest first")
    args = parser.parse_args()
    run = Run("break_even", args.output / instructions().lower())
    cases = [
        run.piece(f"{preset}, {dtype}, {grid}", measure, preset, config, replace(shape, grid=grid), dtype)
        for preset, config, shape in shipped_presets()
        for dtype in DTYPES
        for grid in GRIDS[: args.lengths]
    ]
    run.write({"cases": cases, "instructions": instructions()}, page)


if __name__ == "__main__":
    main()
