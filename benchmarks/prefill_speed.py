"""Causal prefill with PSA on a CPU against torch SDPA, in one run: `python benchmarks/prefill_speed.py`.

Two parts: attention alone, and a whole prefill (projections, MLP, norms) of a model with random weights. Heads and
layers all do the same work, so few of them are measured; the report says how many. Ratios are taken within a round, in
which each function runs once; the table gives their median and range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

import torch
import torch.nn.functional as F
from choices import Choices
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
from psa_triton.importance import estimation_cost
from psa_triton.integrations.transformers import apply_psa
from psa_triton.levels import levels_of
from psa_triton.tools.clock import seconds_by_round

VOCABULARY: Final = 256
"""Random weights have nothing to say: the word embedding and the output layer are left small."""


@dataclass(frozen=True)
class Shape:
    """A model of which a few layers are measured."""

    name: str
    model: type[PreTrainedModel]
    config: PreTrainedConfig

    @property
    def heads(self) -> tuple[int, int]:
        """Query and key heads."""
        return self.config.num_attention_heads, self.config.num_key_value_heads


_SMOLLM2: Final = dict(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
_QWEN: Final = dict(hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4)
_TOKENS: Final = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
_ROPE: Final = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_ROOM: Final = dict(vocab_size=VOCABULARY, max_position_embeddings=2**16)
SHAPES: Final = {
    # Two layers of 30, and one of 28.
    "smollm2": Shape("SmolLM2-135M", LlamaForCausalLM, LlamaConfig(**_SMOLLM2, num_hidden_layers=2, **_ROOM)),
    "qwen2.5-vl": Shape(
        *("Qwen2.5-VL-7B", Qwen2_5_VLTextModel),
        Qwen2_5_VLTextConfig(**_QWEN, **_TOKENS, num_hidden_layers=1, rope_parameters=_ROPE, **_ROOM),
    ),
}
BLOCKS: Final = dict(block_m=128, block_n=128)
CONFIG: Final = PSAConfig(
    **BLOCKS, mask_mode="topk", importance="antidiagonal", keep_first_block=True, use_rearrange=False
)
"""Blocks and importance of preset `Qwen2.5-VL`, but fixed shares: random inputs have no important blocks.

They are of all key blocks, visible or not: early queries read most of the few that they see. Nor are neighbours alike,
so the similarity cap is off: it would read all of them in full.
"""


def ratios(seconds: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Median and range over the rounds of the time of `over` divided by that of `under`."""
    each = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return {"median": median(each), "least": min(each), "most": max(each)}


def measure_attention(shape: Shape, tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Attention of one key head and the query heads that read it."""
    generator = torch.Generator().manual_seed(tokens)
    heads, key_heads = shape.heads
    group, dim = heads // key_heads, shape.config.hidden_size // heads
    q, k, v = (torch.randn(1, h, tokens, dim, generator=generator).to(dtype) for h in (group, 1, 1))
    levels = levels_of(q, k, v, CONFIG, is_causal=True)
    functions = {
        "dense": partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True),
        "psa": partial(psa_attention, q, k, v, CONFIG, is_causal=True, impl="cpu"),
        "choice": partial(levels_of, q, k, v, CONFIG, is_causal=True),
        "kernel": partial(pyramid_attention, q, k, v, levels, is_causal=True, impl="cpu", **BLOCKS),
    }
    seconds = seconds_by_round(functions, rounds=rounds, device=CPU, warm_up=False)
    density = Choices(q, k, v, is_causal=True).density(levels, CONFIG)
    return {
        "part": "attention",
        "model": shape.name,
        "measured": f"{group} of {heads} query heads, 1 of {key_heads} key heads",
        "tokens": tokens,
        "density": density,
        "density_with_estimation": density + estimation_cost(CONFIG.importance, **BLOCKS),
        "seconds": seconds,
        "speedup": ratios(seconds, "dense", "psa"),
        "kernel_speedup": ratios(seconds, "dense", "kernel"),
        "estimation_share": ratios(seconds, "choice", "psa"),
    }


def measure_prefill(shape: Shape, model: PreTrainedModel, tokens: int, rounds: int) -> dict[str, Any]:
    """A whole prefill into an empty cache, dense and with PSA attached."""
    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    extras = {"logits_to_keep": 1} if hasattr(model, "lm_head") else {}
    summaries: list[Any] = []

    def run() -> None:
        model(input_ids=ids, use_cache=True, **extras)

    def run_sparse() -> None:
        with apply_psa(model, CONFIG, impl="cpu", time_layers=True) as handle:
            run()
            summaries.append(handle.stats().summary)

    seconds = seconds_by_round({"dense": run, "psa": run_sparse}, rounds=rounds, device=CPU, warm_up=False)
    shares = [summary.sparse_seconds / whole for summary, whole in zip(summaries, seconds["psa"], strict=True)]
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
        "attention_share": median(shares),
    }


def page(report: Report) -> str:
    """A row a part, model and length."""
    config = report["config"]
    words = (
        f"Speed-up over SDPA with its causal mask: median of {report['rounds']} rounds (least to most), "
        f"{report['dtype']}, transformers {report['versions']['transformers']}. Blocks of",
        f"{config['block_m']} x {config['block_n']}, {config['importance']} importance. Random inputs: the density",
        "follows from fixed shares of the blocks, not from what a text needs.",
        "",
    )
    spread = "{median:.2f}x ({least:.2f}-{most:.2f})"
    columns = {name: f"{{{name}}}" for name in ("part", "model", "measured", "tokens")} | {
        "density": "{density:.3f}",
        "with estimation": "{density_with_estimation:.3f}",
        "SDPA s": "{dense:.2f}",
        "PSA s": "{psa:.2f}",
        "speed-up": "{ratio}",
        "levels alone": "{kernel}",
        "choosing levels": "{share}",
    }
    rows = []
    for case in report["cases"]:
        texts = {"ratio": spread.format(**case["speedup"]), "kernel": "-", "share": "-"}
        if case["part"] == "attention":
            texts["kernel"] = spread.format(**case["kernel_speedup"])
            texts["share"] = f"{case['estimation_share']['median']:.0%} of PSA"
        rows.append(case | texts | {name: median(case["seconds"][name]) for name in ("dense", "psa")})
    return "\n".join([*heading(report, "Causal prefill on a CPU", *words), *table_of(rows, columns), ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dtype = DTYPES[args.dtype]
    run, cases = Run("prefill_speed", args.output), []
    with torch.no_grad():
        for shape in (SHAPES[name] for name in args.models):
            torch.manual_seed(0)  # what is read depends on the weights
            model = shape.model(shape.config).eval().to(dtype)
            for tokens in args.tokens:
                name = f"{shape.name}, {tokens} tokens"
                cases.append(run.piece(f"{name}, attention", measure_attention, shape, tokens, dtype, args.rounds))
                cases.append(run.piece(f"{name}, prefill", measure_prefill, shape, model, tokens, args.rounds))
    settings = CONFIG.model_dump(mode="json", include={"block_m", "block_n", "mask_ratios", "importance"})
    run.write({"dtype": args.dtype, "rounds": args.rounds, "config": settings, "cases": cases}, page)


if __name__ == "__main__":
    main()
