"""Which tensors methods are measured on, and how they are cut into blocks there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from smollm2 import load_model, token_ids
from tensors import AttentionTensors, Grid, Tap
from tensors.adversarial import CASES, adversarial_tensors
from tensors.frames import CLIPS
from tensors.tiny_wan import tiny_wan_cases
from tensors.vit import LAYERS, VARIANTS, Variant, vit_tensors

QUICK_GRID: Final[Grid] = (4, 16, 16)
TEXT_LAYERS: Final = (3, 12, 21, 28)


@dataclass(frozen=True)
class InputSet:
    """Attentions over which errors are averaged."""

    name: str
    cases: Callable[[], Iterable[AttentionTensors]]
    kind: Literal["vit", "text", "other"] = "other"
    block_m: int = 128
    block_n: int | None = None
    """Instead of the methods' own, for sequences too short for them."""


def input_sets(*, quick: bool) -> list[InputSet]:
    """The built-in video model, a text under its causal mask, made inputs, and the vision transformer over clips."""
    if quick:
        made = [InputSet(case, partial(_made, case, QUICK_GRID), block_m=32) for case in CASES]
        vit = InputSet("bikes/rope", partial(_vit, "bikes", "rope", LAYERS[1:2], QUICK_GRID), "vit", block_m=32)
        return [_text_set(1024, TEXT_LAYERS[1:2]), *made, vit]
    return [
        InputSet("tiny-wan", tiny_wan_cases),
        _text_set(8192, TEXT_LAYERS),
        *(InputSet(case, partial(_made, case)) for case in CASES),
        *(InputSet(f"{clip}/{way}", partial(_vit, clip, way), "vit") for clip in CLIPS for way in VARIANTS),
    ]


def _made(case: str, *grid: Grid) -> Iterator[AttentionTensors]:
    yield adversarial_tensors(case, *grid)


def _vit(clip: str, variant: Variant, layers: tuple[int, ...] = LAYERS, *grid: Grid) -> Iterator[AttentionTensors]:
    for layer in layers:
        yield vit_tensors(clip, layer, variant, *grid)


def _text_set(tokens: int, layers: tuple[int, ...]) -> InputSet:
    return InputSet("SmolLM2, causal", partial(_text, tokens, layers), "text", block_m=32, block_n=32)


@torch.no_grad()
def _text(tokens: int, layers: tuple[int, ...]) -> list[AttentionTensors]:
    model, tokenizer = load_model()
    with Tap(layers) as tap:
        model.base_model(token_ids(tokenizer, "documentation", tokens), use_cache=False)
    return [
        AttentionTensors(f"SmolLM2/layer {layer}", *attended, grid=None)
        for layer, attended in zip(layers, tap.attended, strict=True)
    ]
