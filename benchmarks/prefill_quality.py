"""What PSA's prefill does to a language model: `python benchmarks/prefill_quality.py`.

Perplexity of a long real text, every token predicted in one prefill of the whole: dense against sparse attention at
equal densities, by levels, importance and block size. The model is SmolLM2-135M-Instruct unless `--model` names a
folder. Densities are reached by a search over queries and keys of the dense run; those reported are of the sparse run.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from choices import Choices
from harness import DTYPES, Report, Run, curves, heading, options, table_of
from prefill_methods import GROUPS, WANTED_DENSITY, Method
from smollm2 import CONTEXT, TEXTS, load_model, token_ids
from tensors import Tap
from torch import Tensor
from transformers import PreTrainedModel

from psa_triton import PSAConfig
from psa_triton.integrations.transformers import apply_psa

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_TOKENS: Final = 1024
_LOGITS_AT_A_TIME: Final = 1024
COLUMNS: Final = {
    "density": "{density:.3f}",
    "with estimate": "{density_with_estimation:.3f}",
    "perplexity": "{perplexity:.3f}",
    "change": "{change:+.2%} ± {standard_error:.2%}",
    "last half": "{change_last_half:+.2%}",
    "divergence": "{divergence:.4f} ± {divergence_standard_error:.4f}",
}

Row = dict[str, Any]
Methods = dict[str, list[Method]]


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


def perplexity(losses: Tensor) -> dict[str, float]:
    """Of all tokens, and of those with a long context."""
    last_half = losses[len(losses) // 2 :]
    return {"perplexity": float(losses.mean().exp()), "perplexity_last_half": float(last_half.mean().exp())}


def run_sparse(model: PreTrainedModel, ids: Tensor, config: PSAConfig, dense: Tensor, dense_losses: Tensor) -> Row:
    """A run with PSA attached, against states `[N - 1, C]` and losses `[N - 1]` of the dense one of the same tokens."""
    began = time.perf_counter()
    with apply_psa(model, config, impl="cpu", min_tokens=0) as handle:
        states = last_states(model, ids)
        summary = handle.stats().summary
    losses, divergence = losses_and_divergence(model, ids, states, dense)
    change = losses - dense_losses
    return {
        "density": summary.prefill_density,
        "density_with_estimation": summary.prefill_density_with_estimation,
        "dense_calls": summary.dense_calls,
        **perplexity(losses),
        "change": float(change.mean().expm1()),
        "change_last_half": float(change[len(change) // 2 :].mean().expm1()),
        "standard_error": float(change.std() / len(change) ** 0.5),
        "divergence": float(divergence.mean()),
        "divergence_standard_error": float(divergence.std() / len(divergence) ** 0.5),
        "seconds": time.perf_counter() - began,
    }


@torch.no_grad()
def measure_text(model: PreTrainedModel, ids: Tensor, text: str, methods: Methods) -> dict[str, Any]:
    """The dense run of a text, and a row for every method at each of its densities."""
    with Tap(range(model.config.num_hidden_layers)) as tap:
        began = time.perf_counter()
        dense = last_states(model, ids)
        seconds = time.perf_counter() - began
    losses, _ = losses_and_divergence(model, ids, dense, dense)
    layers = [Choices(*attended, is_causal=True) for attended in tap.attended]
    rows = []
    for group, method in ((group, method) for group, members in methods.items() for method in members):
        for config in [method.at(density, layers) for density in method.densities] or [method.config]:
            row = run_sparse(model, ids, config, dense, losses)
            print(f"{text}, {group}, {method.name} at {row['density']:.3f}: {row['change']:+.2%}", flush=True)
            settings = config.model_dump(mode="json", include={"importance", "mask_mode", "mask_ratios", "budget"})
            names = {"group": group, "method": method.name, "is_block_sparse": method.is_block_sparse}
            rows.append(names | row | {"config": settings})
    return {"text": text, "tokens": ids.shape[1], **perplexity(losses), "seconds": seconds, "rows": rows}


def methods_of(groups: list[str], *, short: bool, quick: bool) -> Methods:
    """Methods by group; of `short` only the first groups, at the wanted density alone."""
    if not short:
        return {group: list(GROUPS[group]) for group in groups}
    first = [group for group in list(GROUPS)[: 1 if quick else 3] if group in groups]
    wanted = (WANTED_DENSITY,)
    return {group: [replace(m, densities=wanted) if m.densities else m for m in GROUPS[group]] for group in first}


def page(report: Report) -> str:
    """A table a group, for each text."""
    lines = heading(
        report,
        "Perplexity after sparse prefill",
        f"{report['model']}, {report['dtype']}, transformers {report['versions']['transformers']}. Every token of a",
        "text is predicted in one prefill of all of it. Change: of perplexity against dense attention on the same",
        "tokens, ± its standard error over tokens; in the last half the context is long. Divergence: of predictions",
        "from the dense ones (Kullback and Leibler), nats per token, ± its standard error. Density:",
        "groups read over keys visible, mean over queries, heads and layers; then with the estimate of importance.",
        "Methods are brought to a density by a search.",
    )
    for text in report["texts"]:
        perplexity = f"dense {text['perplexity']:.3f}, last half {text['perplexity_last_half']:.3f}"
        lines += ["", f"## {text['text']}: {text['tokens']} tokens, {perplexity}"]
        for group in dict.fromkeys(row["group"] for row in text["rows"]):
            rows = [row for row in text["rows"] if row["group"] == group]
            lines += ["", *table_of(rows, {group: "{method}"} | COLUMNS)]
    return "\n".join([*lines, "", f"![Divergence against density]({report['picture']})", ""])


def draw(report: Report) -> Figure:
    """Divergence from dense predictions against density on the first text: a panel for each group."""
    rows = report["texts"][0]["rows"]
    points = [(row["group"], row["method"], row["density"], row["divergence"]) for row in rows]
    return curves(points, "density", "divergence from dense, nats", line=WANTED_DENSITY)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="folder of another model, as save_pretrained writes it")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="the first gets every group")
    parser.add_argument("--tokens", type=int, help=f"of each text; {CONTEXT}, or {QUICK_TOKENS} with --quick")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="of methods")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TOKENS} tokens, the first group, one density")
    args = parser.parse_args()
    names = args.texts[:1] if args.quick else args.texts
    try:
        model, tokenizer = load_model(args.model)
        tokens = args.tokens or (QUICK_TOKENS if args.quick else CONTEXT)
        texts = {text: token_ids(tokenizer, text, tokens) for text in names}
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    model = model.to(DTYPES[args.dtype])
    run, found = Run("prefill_quality", args.output), []
    for text, ids in texts.items():
        methods = methods_of(args.groups, short=args.quick or text != names[0], quick=args.quick)
        found.append(run.piece(text, measure_text, model, ids, text, methods))
    name = "SmolLM2-135M-Instruct" if args.model is None else args.model.name
    run.write({"model": name, "dtype": args.dtype, "texts": found}, page, draw)


if __name__ == "__main__":
    main()
