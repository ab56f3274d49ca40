"""Which tensors methods are measured on, and how they are cut into blocks there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from smollm2 import tapped_qkv
from tensors import AttentionTensors, Grid
from tensors.adversarial import CASES, adversarial_tensors
from tensors.frames import CLIPS
from tensors.tiny_wan import tiny_wan_cases
from tensors.vit import LAYERS, VARIANTS, vit_cases

QUICK_GRID: Final[Grid] = (4, 16, 16)
TEXT_LAYERS: Final = (3, 12, 21, 28)


@dataclass(frozen=True)
class InputSet:
    """Attentions over which errors are averaged."""

    name: str
    cases: Callable[[], Iterable[AttentionTensors]]
    block_m: int = 128
    block_n: int | None = None
    """Instead of the methods' own, for sequences too short for them."""


def vit_sets(*, quick: bool) -> list[InputSet]:
    """The vision transformer over both clips, with and without rotary embedding."""
    if quick:
        return [InputSet("bikes/rope", partial(vit_cases, ("bikes",), LAYERS[1:2], ("rope",), grid=QUICK_GRID), 32)]
    pairs = [(clip, variant) for clip in CLIPS for variant in VARIANTS]
    return [InputSet(f"{c}/{variant}", partial(vit_cases, (c,), LAYERS, (variant,))) for c, variant in pairs]


def video_set() -> InputSet:
    """The built-in video model's own attention."""
    return InputSet("tiny-wan", tiny_wan_cases, block_m=32, block_n=32)


def made_sets(*, quick: bool) -> list[InputSet]:
    """Random inputs, and some made to break sparse attention."""
    settings = dict(grid=QUICK_GRID) if quick else {}
    return [
        InputSet(case, lambda case=case: [adversarial_tensors(case, **settings)], 32 if quick else 128)
        for case in CASES
    ]


def text_set(*, quick: bool) -> InputSet:
    """SmolLM2 reading a text, under its causal mask."""
    tokens, layers = (1024, TEXT_LAYERS[1:2]) if quick else (8192, TEXT_LAYERS)
    return InputSet("SmolLM2, causal", partial(_text_cases, tokens, layers), block_m=32, block_n=32)


def _text_cases(tokens: int, layers: tuple[int, ...]) -> Iterator[AttentionTensors]:
    for layer, (q, k, v) in zip(layers, tapped_qkv(layers, tokens=tokens), strict=True):
        yield AttentionTensors(f"SmolLM2/layer {layer}", q, k, v, None, is_causal=True, scale=q.shape[-1] ** -0.5)
