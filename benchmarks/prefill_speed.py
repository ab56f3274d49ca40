"""Causal prefill with PSA on a CPU against torch SDPA, in one run: `python benchmarks/prefill_speed.py`.

Two parts: attention alone, and a whole prefill (projections, MLP, norms) of a model with random weights. Heads and
layers all do the same work, so few of them are measured; the report says how many. Ratios are taken within a round, in
which each function runs once; the table gives their median and range.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from harness import CPU, DTYPES, Report, Run, heading, options, table_of
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
)

from psa_triton import PSAConfig, psa_attention, pyramid_attention
from psa_triton.blocks import Blocks
from psa_triton.importance import estimation_cost
from psa_triton.integrations.transformers import apply_psa
from psa_triton.levels import levels_of, read_density
from psa_triton.tools.clock import seconds_by_round

VOCABULARY = 256
"""Random weights have nothing to say: the word embedding and the output layer are left small."""


@dataclass(frozen=True)
class Shape:
    """A model's attention, and how much of the model is measured."""

    name: str
    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    settings: dict[str, Any]
    dim: int

    def make_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """With random weights."""
        config = self.config(**self.settings, vocab_size=VOCABULARY, max_position_embeddings=2**16)
        return self.model(config).eval().to(dtype)

    @property
    def heads(self) -> tuple[int, int]:
        """Query and key heads."""
        return self.settings["num_attention_heads"], self.settings["num_key_value_heads"]


SHAPES: Final = {
    "smollm2": Shape(  # two of 30 layers
        *("SmolLM2-135M", LlamaForCausalLM, LlamaConfig),
        settings=dict(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3
        ),
        dim=64,
    ),
    "qwen2.5-vl": Shape(  # one of 28 text layers
        *("Qwen2.5-VL-7B", Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig),
        settings=dict(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=1,
            num_attention_heads=28,
            num_key_value_heads=4,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        ),
        dim=128,
    ),
}
CONFIG: Final = PSAConfig(
    block_m=128, block_n=128, mask_mode="topk", importance="antidiagonal", keep_first_block=True, use_rearrange=False
)
"""Blocks and importance of preset `Qwen2.5-VL`, but fixed shares: random inputs have no important blocks.

They are of all key blocks, visible or not: early queries read most of the few that they see. Nor are neighbours alike,
so the similarity cap is off: it would read all of them in full.
"""


def ratios(seconds: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Median and range over the rounds of the time of `over` divided by that of `under`."""
    each = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


def _time(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    return seconds_by_round(functions, rounds=rounds, device=CPU, warm_up=False)


def measure_attention(shape: Shape, tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Attention of one key head and the query heads that read it."""
    generator = torch.Generator().manual_seed(tokens)
    heads, key_heads = shape.heads
    group = heads // key_heads
    q, k, v = (torch.randn(1, h, tokens, shape.dim, generator=generator).to(dtype) for h in (group, 1, 1))
    blocks: dict[str, int] = dict(block_m=CONFIG.block_m, block_n=CONFIG.block_n)
    levels = levels_of(q, k, v, CONFIG, is_causal=True)
    seconds = _time(
        {
            "dense": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
            "psa": lambda: psa_attention(q, k, v, CONFIG, is_causal=True, impl="cpu"),
            "choice": lambda: levels_of(q, k, v, CONFIG, is_causal=True),
            "kernel": lambda: pyramid_attention(q, k, v, levels, is_causal=True, impl="cpu", **blocks),
        },
        rounds,
    )
    density = read_density(levels, Blocks.of(q, k, CONFIG.block_m, CONFIG.block_n, is_causal=True)).mean()
    return {
        "part": "attention",
        "model": shape.name,
        "measured": f"{group} of {heads} query heads, 1 of {key_heads} key heads",
        "tokens": tokens,
        "density": float(density),
        "density_with_estimation": float(density) + estimation_cost(CONFIG.importance, **blocks),
        "seconds": seconds,
        "speedup": ratios(seconds, "dense", "psa"),
        "kernel_speedup": ratios(seconds, "dense", "kernel"),
        "estimation_share": ratios(seconds, "choice", "psa"),
    }


def measure_prefill(shape: Shape, model: PreTrainedModel, tokens: int, rounds: int) -> dict[str, Any]:
    """A whole prefill into an empty cache, dense and with PSA attached."""
    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    extras = {"logits_to_keep": 1} if hasattr(model, "lm_head") else {}

    def run() -> None:
        model(input_ids=ids, use_cache=True, **extras)

    def run_sparse() -> None:
        with apply_psa(model, CONFIG, impl="cpu", time_layers=True) as handle:
            run()
            summaries.append(handle.stats().summary)

    summaries: list[Any] = []
    seconds = _time({"dense": run, "psa": run_sparse}, rounds)
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


def page(report: Report) -> str:
    """The report as a page."""
    config = report["config"]
    words = (
        f"Speed-up over SDPA with its causal mask: median of {report['rounds']} rounds (least to most), "
        f"{report['dtype']}, transformers {report['versions']['transformers']}. Blocks of",
        f"{config['block_m']} x {config['block_n']}, {config['importance']} importance. Random inputs: the density",
        "follows from fixed shares of the blocks, not from what a text needs.",
        "",
    )
    rows = []
    for case in report["cases"]:
        texts = {
            "median": {name: statistics.median(case["seconds"][name]) for name in ("dense", "psa")},
            "ratio": _range(case["speedup"]),
            "kernel": _range(case["kernel_speedup"]) if "kernel_speedup" in case else "-",
            "share": f"{case['estimation_share']['median']:.0%} of PSA" if "estimation_share" in case else "-",
        }
        rows.append(case | texts)
    columns = {name: f"{{{name}}}" for name in ("part", "model", "measured", "tokens")} | {
        "density": "{density:.3f}",
        "with estimation": "{density_with_estimation:.3f}",
        "SDPA s": "{median[dense]:.2f}",
        "PSA s": "{median[psa]:.2f}",
        "speed-up": "{ratio}",
        "levels alone": "{kernel}",
        "choosing levels": "{share}",
    }
    return "\n".join([*heading(report, "Causal prefill on a CPU", *words), *table_of(rows, columns), ""])


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['least']:.2f}-{ratio['most']:.2f})"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--parts", nargs="+", choices=("attention", "prefill"), default=["attention", "prefill"])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dtype = DTYPES[args.dtype]
    run, cases = Run("prefill_speed", args.output), []
    with torch.no_grad():
        for shape in (SHAPES[name] for name in args.models):
            model = shape.make_model(dtype) if "prefill" in args.parts else None
            for tokens in args.tokens:
                name = f"{shape.name}, {tokens} tokens"
                if "attention" in args.parts:
                    how = (shape, tokens, dtype, args.rounds)
                    cases.append(run.piece(f"{name}, attention", measure_attention, *how))
                if model is not None:
                    how = (shape, model, tokens, args.rounds)
                    cases.append(run.piece(f"{name}, prefill", measure_prefill, *how))
    settings = CONFIG.model_dump(mode="json", include={"block_m", "block_n", "mask_ratios", "importance"})
    run.write({"dtype": args.dtype, "rounds": args.rounds, "config": settings, "cases": cases}, page)


if __name__ == "__main__":
    main()
