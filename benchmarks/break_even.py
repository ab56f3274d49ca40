"""From how many tokens on is each shipped preset faster than dense attention? `python benchmarks/break_even.py`.

Dense attention and the whole sparse operator (levels chosen anew each time) run side by side in one process, on tensors
that attend to their surroundings as those of video models do; tokens are in order already, as inside a model with PSA
attached. Times are the least of interleaved rounds: at these lengths a call takes milliseconds, and anything else that
runs on the machine takes as long. `apply_psa` takes its shortest sequences from here (`BREAK_EVEN`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import torch
import torch.nn.functional as F

from psa_triton import PSAConfig
from psa_triton.attention import sparse_attention
from psa_triton.levels import read_density
from psa_triton.presets import load_presets_file
from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.machine import hardware, versions
from psa_triton.tools.shapes import AttentionShape, known_shapes

RESULTS = Path(__file__).parent / "results"
HEADS = 4
GRIDS = [(4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 32)]
"""256 to 8,192 visual tokens."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One preset at one length."""

    preset: str
    dim: int
    dtype: str
    visual_tokens: int
    prefix_tokens: int
    density: float
    dense_seconds: float
    sparse_seconds: float

    @property
    def speedup(self) -> float:
        return self.dense_seconds / self.sparse_seconds


def shipped_presets() -> Iterator[tuple[str, PSAConfig, AttentionShape]]:
    """Each sparse preset of a video model, with its model's head size and text."""
    shapes = {shape.section: shape for shape in known_shapes() if not shape.is_causal}
    sections = load_presets_file().sections
    for name, shape in shapes.items():
        for preset, described in sections[name].attention_configs.items():
            if (config := described.config()) is not None:
                yield f"{name}/{preset}", config.replace(use_rearrange=False), shape


def measure(preset: str, config: PSAConfig, shape: AttentionShape, dtype: str, device: torch.device) -> Case:
    q, k, v = local_inputs(shape, device=device, dtype=DTYPES[dtype])
    prefix = shape.prefix_tokens
    _, levels = sparse_attention(q, k, v, config, prefix_tokens=prefix)
    blocks = dict(block_m=config.block_m, block_n=config.block_n)
    density = read_density(levels, query_tokens=shape.tokens, key_tokens=shape.tokens, **blocks)
    functions = {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "sparse": lambda: sparse_attention(q, k, v, config, prefix_tokens=prefix),
    }
    seconds = least_seconds(functions, rounds=max(3, min(20, 20_000 // shape.tokens)), device=device)
    return Case(
        preset=preset,
        dim=shape.dim,
        dtype=dtype,
        visual_tokens=shape.tokens - prefix,
        prefix_tokens=prefix,
        density=float(density.mean()),
        dense_seconds=seconds["dense"],
        sparse_seconds=seconds["sparse"],
    )


def least_seconds(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    seconds = dict.fromkeys(functions, float("inf"))
    for _ in range(1 + rounds):
        for name, function in functions.items():
            began = now(device)
            function()
            seconds[name] = min(seconds[name], now(device) - began)
    return seconds


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def break_even(cases: list[Case]) -> int | None:
    """The shortest length from which on sparse attention was faster at every one measured."""
    faster = list(takewhile(lambda case: case.speedup > 1, reversed(cases)))
    return faster[-1].visual_tokens + faster[-1].prefix_tokens if faster else None


def table(runs: dict[tuple[str, str], list[Case]]) -> str:
    """Markdown: a row a preset and type, a column a length."""
    lengths = [case.visual_tokens for case in next(iter(runs.values()))]
    lines = ["| preset | head | text | type |" + "".join(f" {n:,} |" for n in lengths) + " faster from |"]
    lines.append("|---|---|---|---|" + "---|" * (len(lengths) + 1))
    for (preset, dtype), cases in runs.items():
        cells = "".join(f" {case.speedup:.2f} ({case.density:.2f}) |" for case in cases)
        start = break_even(cases)
        first = cases[0]
        head = f"| {preset} | {first.dim} | {first.prefix_tokens} | {dtype} |"
        lines.append(f"{head}{cells} {'-' if start is None else f'{start:,}'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--lengths", type=int, default=len(GRIDS), help="how many lengths, shortest first")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the table")
    args = parser.parse_args()
    runs: dict[tuple[str, str], list[Case]] = {}
    for preset, config, shape in shipped_presets():
        small = shape.with_heads(HEADS)
        for dtype in DTYPES:
            shapes = [AttentionShape(**{**asdict(small), "grid": grid}) for grid in GRIDS[: args.lengths]]
            runs[preset, dtype] = [measure(preset, config, each, dtype, args.device) for each in shapes]
            print(f"{preset}, {dtype}: faster from {break_even(runs[preset, dtype])}", flush=True)
    command = shlex.join(["python", "benchmarks/break_even.py", *sys.argv[1:]])
    made_with = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "hardware": hardware(args.device),
        "versions": versions(),
    }
    cases = [{**asdict(case), "speedup": case.speedup} for run in runs.values() for case in run]
    machine = made_with["hardware"]
    text = (
        f"Speed of the whole sparse operator over dense attention (density), by visual tokens; {HEADS} heads; "
        f"{machine['gpu'] or machine['cpu']}, threads: {machine['threads']}, torch {torch.__version__}, "
        f"{made_with['date'][:10]}, `{command}`\n\n{table(runs)}\n"
    )
    stem = args.output / f"break_even_{made_with['date'][:10]}"
    args.output.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(made_with | {"cases": cases}, indent=2) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
