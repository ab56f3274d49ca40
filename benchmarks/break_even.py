"""From how many tokens on is each shipped preset faster than dense attention? `python benchmarks/break_even.py`.

Dense attention and the whole sparse operator (levels chosen anew each time) run side by side in one process, on tensors
that attend to their surroundings as those of video models do; tokens are in order already, as inside a model with PSA
attached. Times are the least of interleaved rounds: at these lengths a call takes milliseconds, and anything else that
runs on the machine takes as long. `apply_psa` takes its shortest sequences from here (`BREAK_EVEN`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from harness import CPU, DTYPES, Report, Run, heading, options, table

from psa_triton import PSAConfig
from psa_triton.attention import sparse_attention
from psa_triton.levels import read_density
from psa_triton.presets import load_presets_file
from psa_triton.tools.bench.clock import seconds_by_round
from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.shapes import AttentionShape, known_shapes

HEADS = 4
GRIDS = [(4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 32)]
"""256 to 8,192 visual tokens."""


Row = dict[str, Any]
"""One preset at one length."""


def shipped_presets() -> Iterator[tuple[str, PSAConfig, AttentionShape]]:
    """Each sparse preset of a video model, with its model's head size and text."""
    shapes = {shape.section: shape for shape in known_shapes() if not shape.is_causal}
    sections = load_presets_file().sections
    for name, shape in shapes.items():
        for preset, described in sections[name].attention_configs.items():
            if (config := described.config()) is not None:
                yield f"{name}/{preset}", config.replace(use_rearrange=False), shape


def measure(preset: str, config: PSAConfig, shape: AttentionShape, dtype: str, device: torch.device) -> Row:
    q, k, v = local_inputs(shape, device=device, dtype=DTYPES[dtype])
    prefix = shape.prefix_tokens
    _, levels = sparse_attention(q, k, v, config, prefix_tokens=prefix)
    blocks = dict(block_m=config.block_m, block_n=config.block_n)
    density = read_density(levels, query_tokens=shape.tokens, key_tokens=shape.tokens, **blocks)
    functions = {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "sparse": lambda: sparse_attention(q, k, v, config, prefix_tokens=prefix),
    }
    rounds = max(3, min(20, 20_000 // shape.tokens))
    seconds = {name: min(each) for name, each in seconds_by_round(functions, rounds=rounds, device=device).items()}
    return {
        "preset": preset,
        "dim": shape.dim,
        "dtype": dtype,
        "visual_tokens": shape.tokens - prefix,
        "prefix_tokens": prefix,
        "density": float(density.mean()),
        "dense_seconds": seconds["dense"],
        "sparse_seconds": seconds["sparse"],
        "speedup": seconds["dense"] / seconds["sparse"],
    }


def break_even(cases: Sequence[Row]) -> int | None:
    """The shortest length from which on sparse attention was faster at every one measured."""
    faster = list(takewhile(lambda case: case["speedup"] > 1, reversed(cases)))
    return faster[-1]["visual_tokens"] + faster[-1]["prefix_tokens"] if faster else None


def measure_preset(
    preset: str, config: PSAConfig, shape: AttentionShape, dtype: str, device: torch.device, lengths: int
) -> list[Row]:
    """`measure` at the shortest lengths."""
    shapes = [replace(shape.with_heads(HEADS), grid=grid) for grid in GRIDS[:lengths]]
    cases = [measure(preset, config, each, dtype, device) for each in shapes]
    print(f"{preset}, {dtype}: faster from {break_even(cases)}", flush=True)
    return cases


def page(report: Report) -> str:
    """A row a preset and type, a column a length."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for case in report["cases"]:
        runs.setdefault((case["preset"], case["dtype"]), []).append(case)
    lengths = [f"{case['visual_tokens']:,}" for case in next(iter(runs.values()))]
    rows = []
    for (preset, dtype), cases in runs.items():
        start = break_even(cases)
        cells = [f"{case['speedup']:.2f} ({case['density']:.2f})" for case in cases]
        first = [str(cases[0]["dim"]), str(cases[0]["prefix_tokens"]), dtype]
        rows.append([preset, *first, *cells, "-" if start is None else f"{start:,}"])
    words = f"Speed of the whole sparse operator over dense attention (density), by visual tokens; {HEADS} heads."
    columns = ["preset", "head", "text", "type", *lengths, "faster from"]
    return "\n".join([*heading(report, "Break-even lengths", words, ""), *table(columns, rows), ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", type=torch.device, default=CPU)
    parser.add_argument("--lengths", type=int, default=len(GRIDS), help="how many lengths, shortest first")
    args = parser.parse_args()
    run, cases = Run("break_even", args.output, args.device), []
    for preset, config, shape in shipped_presets():
        for dtype in ("float32", "bfloat16"):
            how = (preset, config, shape, dtype, args.device, args.lengths)
            cases += run.piece(f"{preset}, {dtype}", measure_preset, *how)
    run.write({"cases": cases}, page)


if __name__ == "__main__":
    main()
