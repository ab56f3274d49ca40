"""Causal prefill with PSA on a CPU against torch SDPA, in one run: `python benchmarks/prefill_speed.py`.

Two parts: attention alone, and a whole prefill (projections, MLP, norms) of a model with random weights. Heads and
layers all do the same work, so few of them are measured; the report says how many. Ratios are taken within a round, in
which each function runs once; the table gives their median and range.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

from psa_triton import PSAConfig, psa_attention, pyramid_attention
from psa_triton.blocks import Blocks
from psa_triton.importance import estimation_cost
from psa_triton.integrations.transformers import apply_psa
from psa_triton.levels import levels_of, read_density
from psa_triton.tools.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
VOCABULARY = 256
"""Random weights have nothing to say: the word embedding and the output layer are left small."""


@dataclass(frozen=True)
class Shape:
    """A model's attention, and what of it is measured."""

    name: str
    heads: int
    key_heads: int
    dim: int
    make_model: Callable[[], PreTrainedModel]
    """With random weights and few layers."""

    @property
    def group(self) -> int:
        """Query heads that share a key head; attention alone is measured on one such group."""
        return self.heads // self.key_heads


def smollm2() -> PreTrainedModel:
    """Two of SmolLM2-135M's 30 layers."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=2,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=2**16,
        )
    )


def qwen2_5_vl() -> PreTrainedModel:
    """One of the 28 text layers of Qwen2.5-VL-7B."""
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=1,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_position_embeddings=2**16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        )
    )


SHAPES = {
    "smollm2": Shape("SmolLM2-135M", 9, 3, 64, smollm2),
    "qwen2.5-vl": Shape("Qwen2.5-VL-7B", 28, 4, 128, qwen2_5_vl),
}


def shares_config(density: str) -> PSAConfig:
    """Blocks and importance of preset `Qwen2.5-VL`, but fixed shares: random inputs have no important blocks.

    Nor are their neighbours alike, so the similarity cap is off: it would read all of them in full.
    """
    return PSAConfig(
        block_m=128,
        block_n=128,
        mask_mode="topk",
        mask_ratios=SHARES[density],
        importance="antidiagonal",
        keep_first_block=True,
        use_rearrange=False,
    )


SHARES = {
    "default": {1: (0.0, 0.1), 2: (0.1, 0.15), 8: (0.15, 0.35), 0: (0.35, 1.0)},
    "thin": {1: (0.0, 0.03), 2: (0.03, 0.06), 4: (0.06, 0.15), 8: (0.15, 0.4), 0: (0.4, 1.0)},
}
"""Of all key blocks, whether visible or not: early queries read most of the few that they see."""


def time_rounds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round; every round runs each of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(seconds: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Median and range over the rounds of the time of `over` divided by that of `under`."""
    each = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


def measure_attention(shape: Shape, tokens: int, dtype: torch.dtype, rounds: int, config: PSAConfig) -> dict[str, Any]:
    """Attention of one key head and the query heads that read it."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, heads, tokens, shape.dim, generator=generator).to(dtype) for heads in (shape.group, 1, 1))
    blocks: dict[str, int] = dict(block_m=config.block_m, block_n=config.block_n)
    levels = levels_of(q, k, v, config, is_causal=True)
    seconds = time_rounds(
        {
            "dense": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
            "psa": lambda: psa_attention(q, k, v, config, is_causal=True, impl="cpu"),
            "choice": lambda: levels_of(q, k, v, config, is_causal=True),
            "kernel": lambda: pyramid_attention(q, k, v, levels, is_causal=True, impl="cpu", **blocks),
        },
        rounds,
    )
    density = read_density(levels, Blocks.of(q, k, config.block_m, config.block_n, is_causal=True)).mean()
    return {
        "part": "attention",
        "model": shape.name,
        "measured": f"{shape.group} of {shape.heads} query heads, 1 of {shape.key_heads} key heads",
        "tokens": tokens,
        "density": float(density),
        "density_with_estimation": float(density) + estimation_cost(config.importance, **blocks),
        "seconds": seconds,
        "speedup": ratios(seconds, "dense", "psa"),
        "kernel_speedup": ratios(seconds, "dense", "kernel"),
        "estimation_share": ratios(seconds, "choice", "psa"),
    }


def measure_prefill(
    shape: Shape, model: PreTrainedModel, tokens: int, rounds: int, config: PSAConfig
) -> dict[str, Any]:
    """A whole prefill into an empty cache, dense and with PSA attached."""
    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    extras = {"logits_to_keep": 1} if hasattr(model, "lm_head") else {}

    def run() -> None:
        model(input_ids=ids, use_cache=True, **extras)

    def run_sparse() -> None:
        with apply_psa(model, config, impl="cpu", time_layers=True) as handle:
            run()
            summaries.append(handle.stats().summary)

    summaries: list[Any] = []
    seconds = time_rounds({"dense": run, "psa": run_sparse}, rounds)
    layers = model.config.num_hidden_layers
    return {
        "part": "prefill",
        "model": shape.name,
        "measured": f"{layers} layer{'s' if layers > 1 else ''}, random weights",
        "tokens": tokens,
        "density": summaries[-1].prefill_density,
        "density_with_estimation": summaries[-1].prefill_density_with_estimation,
        "seconds": seconds,
        "speedup": ratios(seconds, "dense", "psa"),
        "attention_share": statistics.median(
            s.sparse_seconds / whole for s, whole in zip(summaries, seconds["psa"], strict=True)
        ),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Causal prefill on a CPU, {report['date'][:10]}",
        "",
        f"`{report['command']}`; {report['hardware']['cpu']}, {report['hardware']['threads']} threads, "
        f"torch {report['versions']['torch']}, transformers {report['versions']['transformers']}, {report['dtype']}.",
        "",
        f"Speed-up over SDPA with its causal mask: median of {report['rounds']} rounds (least to most). Blocks of "
        f"{report['config']['block_m']} x {report['config']['block_n']}, {report['config']['importance']} importance. "
        "Random inputs: the density follows from fixed shares of the blocks, not from what a text needs.",
        "",
        "| part | model | measured | tokens | density | with estimation | SDPA s | PSA s | speed-up | levels alone "
        "| choosing levels |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in report["cases"]:
        kernel = _range(case["kernel_speedup"]) if "kernel_speedup" in case else "-"
        share = f"{case['estimation_share']['median']:.0%} of PSA" if "estimation_share" in case else "-"
        lines.append(
            f"| {case['part']} | {case['model']} | {case['measured']} | {case['tokens']} | {case['density']:.3f} "
            f"| {case['density_with_estimation']:.3f} | {statistics.median(case['seconds']['dense']):.2f} "
            f"| {statistics.median(case['seconds']['psa']):.2f} | {_range(case['speedup'])} | {kernel} | {share} |"
        )
    return "\n".join(lines) + "\n"


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['least']:.2f}-{ratio['most']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--parts", nargs="+", choices=("attention", "prefill"), default=["attention", "prefill"])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shares", choices=SHARES, default="default", help="how much is read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the Markdown")
    args = parser.parse_args()
    config = shares_config(args.shares)
    dtype = DTYPES[args.dtype]
    cases = []
    with torch.no_grad():
        for name in args.models:
            shape = SHAPES[name]
            model = shape.make_model().eval().to(dtype) if "prefill" in args.parts else None
            for tokens in args.tokens:
                if "attention" in args.parts:
                    cases.append(measure_attention(shape, tokens, dtype, args.rounds, config))
                if model is not None:
                    cases.append(measure_prefill(shape, model, tokens, args.rounds, config))
                print(f"{shape.name}, {tokens} tokens: {cases[-1]['speedup']['median']:.2f}x", flush=True)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/prefill_speed.py", *sys.argv[1:]]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "dtype": args.dtype,
        "rounds": args.rounds,
        "config": config.model_dump(mode="json", include={"block_m", "block_n", "mask_ratios", "importance"}),
        "cases": cases,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"prefill_speed_{report['date'][:10]}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    stem.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
