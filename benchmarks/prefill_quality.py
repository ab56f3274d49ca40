"""What PSA's prefill does to a language model: `python benchmarks/prefill_quality.py`.

Perplexity of a long real text, every token predicted in one prefill of the whole: dense against sparse attention at
equal densities, by levels, importance and block size. The model is SmolLM2-135M-Instruct unless `--model` names a
folder. Densities are reached by a search over queries and keys of the dense run; those reported are of the sparse run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from prefill_density import DenseRun
from prefill_methods import GOAL_DENSITY, GROUPS, Method
from prefill_report import draw, markdown
from smollm2 import CONTEXT, TEXTS, Tap, load_model, token_ids
from torch import Tensor
from transformers import PreTrainedModel

from psa_triton import PSAConfig
from psa_triton.integrations.transformers import apply_psa
from psa_triton.tools.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
QUICK_TOKENS = 1024
_LOGITS_AT_A_TIME = 1024


@torch.no_grad()
def last_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """What the model predicts every token but the first from, `[N - 1, C]`."""
    return model.base_model(ids, use_cache=False).last_hidden_state[0, :-1]


@torch.no_grad()
def losses_and_divergence(model: PreTrainedModel, ids: Tensor, states: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the log-probability of every token but the first, and how far its prediction is from the dense one.

    Args:
        model: turns states into predictions.
        ids: int64 `[1, N]`.
        states: of the run in question, from `last_states`.
        dense: of the dense run.

    Returns:
        Losses, and divergences of Kullback and Leibler, dense from sparse, nats; float32 `[N - 1]` both.
    """
    output = model.get_output_embeddings()
    losses, divergences = [], []
    for some, exact, wanted in zip(*(x.split(_LOGITS_AT_A_TIME) for x in (states, dense, ids[0, 1:])), strict=True):
        found, expected = (output(x).float().log_softmax(-1) for x in (some, exact))
        losses.append(F.nll_loss(found, wanted, reduction="none"))
        divergences.append(F.kl_div(found, expected, reduction="none", log_target=True).sum(-1))
    return torch.cat(losses), torch.cat(divergences)


def run_sparse(
    model: PreTrainedModel, ids: Tensor, config: PSAConfig, dense: Tensor, dense_losses: Tensor
) -> dict[str, Any]:
    """A run with PSA attached, against states `[N - 1, C]` and losses `[N - 1]` of the dense one of the same tokens."""
    began = time.perf_counter()
    with apply_psa(model, config, impl="cpu", min_tokens=0) as handle:
        states = last_states(model, ids)
        summary = handle.stats().summary
    losses, divergence = losses_and_divergence(model, ids, states, dense)
    half = len(losses) // 2
    change = losses - dense_losses
    return {
        "density": summary.prefill_density,
        "density_with_estimation": summary.prefill_density_with_estimation,
        "dense_calls": summary.dense_calls,
        "perplexity": float(losses.mean().exp()),
        "perplexity_last_half": float(losses[half:].mean().exp()),
        "change": float(change.mean().expm1()),
        "change_last_half": float(change[half:].mean().expm1()),
        "standard_error": float(change.std() / len(change) ** 0.5),
        "divergence": float(divergence.mean()),
        "divergence_standard_error": float(divergence.std() / len(divergence) ** 0.5),
        "seconds": time.perf_counter() - began,
    }


def measure_text(model: PreTrainedModel, ids: Tensor, text: str, methods: dict[str, list[Method]]) -> dict[str, Any]:
    """The dense run of a text, and a row for every method at each of its densities."""
    with Tap(range(model.config.num_hidden_layers)) as tap:
        began = time.perf_counter()
        dense = last_states(model, ids)
        seconds = time.perf_counter() - began
    losses, _ = losses_and_divergence(model, ids, dense, dense)
    run = DenseRun(tap.attended())
    rows = []
    for group, method in ((group, method) for group, members in methods.items() for method in members):
        configs = [method.at(density, run) for density in method.densities] or [method.config]
        for config in configs:
            row = run_sparse(model, ids, config, dense, losses)
            print(f"{text}, {group}, {method.name} at {row['density']:.3f}: {row['change']:+.2%}", flush=True)
            settings = config.model_dump(mode="json", include={"importance", "mask_mode", "mask_ratios", "budget"})
            names = {"group": group, "method": method.name, "is_block_sparse": method.is_block_sparse}
            rows.append(names | row | {"config": settings})
    return {
        "text": text,
        "tokens": ids.shape[1],
        "perplexity": float(losses.mean().exp()),
        "perplexity_last_half": float(losses[len(losses) // 2 :].mean().exp()),
        "seconds": seconds,
        "rows": rows,
    }


def thinned(methods: tuple[Method, ...]) -> list[Method]:
    """`methods` at the goal's density alone."""
    return [replace(m, densities=(GOAL_DENSITY,)) if m.densities else m for m in methods]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of another model, as save_pretrained writes it")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="the first gets every group")
    parser.add_argument("--tokens", type=int, help=f"of each text; {CONTEXT}, or {QUICK_TOKENS} with --quick")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="of methods")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TOKENS} tokens, the first group, one density")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON, the Markdown and the plot")
    args = parser.parse_args()
    tokens = args.tokens or (QUICK_TOKENS if args.quick else CONTEXT)
    if args.quick:
        del args.texts[1:]
    try:
        model, tokenizer = load_model(args.model)
        texts = {text: token_ids(tokenizer, text, tokens) for text in args.texts}
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    model = model.to(DTYPES[args.dtype])
    everything = {group: list(GROUPS[group]) for group in args.groups}
    shorter = list(GROUPS)[: 1 if args.quick else 3]
    short = {group: thinned(GROUPS[group]) for group in shorter if group in args.groups}
    measured = [
        measure_text(model, ids, text, short if args.quick or text != args.texts[0] else everything)
        for text, ids in texts.items()
    ]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/prefill_quality.py", *sys.argv[1:]]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "model": "SmolLM2-135M-Instruct" if args.model is None else args.model.name,
        "dtype": args.dtype,
        "texts": measured,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"prefill_quality_{report['date'][:10]}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    draw(report, stem.with_suffix(".png"))
    stem.with_suffix(".md").write_text(markdown(report, f"{stem.name}.png"))
    print(f"written: {stem}.json, .md and .png")


if __name__ == "__main__":
    main()
