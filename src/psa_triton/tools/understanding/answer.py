"""Prompt -> answer: prefill with sparse or dense attention, then tokens one by one as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import TextStreamer

from psa_triton.integrations.transformers import PSAStats, apply_psa
from psa_triton.tools.generation import Attention
from psa_triton.tools.understanding.prompt import Prompt

OnText = Callable[[str], None]
"""Told each piece of the answer, as soon as its words are whole."""
_GREEDY: Final[dict[str, Any]] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Answer:
    """What the model said, and how long it took.

    Attributes:
        text: without special tokens.
        tokens: with the one that ends the answer, if the model ended it.
        prefill_seconds: from the prompt to the first token; the vision model's time is in it.
        decode_seconds: from the first token to the last.
        attention: statistics of PSA; None where it was not attached.
    """

    text: str
    tokens: int
    prefill_seconds: float
    decode_seconds: float
    attention: PSAStats | None

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding; None for an answer of one token, all of which is prefill."""
        return None if self.tokens < 2 else (self.tokens - 1) / self.decode_seconds


class _Listener(TextStreamer):
    """Takes the time of each token, and hands on the text as it becomes whole."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self.pieces: list[str] = []
        self.times: list[float] = []
        """When the prompt was ready, then when each token was."""

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        self._on_text(text)


def answer_prompt(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    attention: Attention,
    *,
    max_tokens: int,
    on_text: OnText = lambda _: None,
) -> Answer:
    """Answer a prompt with the likeliest token each time.

    Args:
        model: as `Checkpoint.load_weights` gives it. PSA is attached for this answer alone.
        tokenizer: the model's.
        prompt: what to answer.
        attention: of the prefill; decoding is dense.
        max_tokens: the longest answer.
        on_text: told the answer while it is made.

    Raises:
        ValueError: PSA cannot be attached to the model.
    """
    listener = _Listener(tokenizer, on_text)
    inputs = {name: value.to(model.device) for name, value in prompt.inputs.items()}
    psa = nullcontext() if attention.config is None else apply_psa(model, attention.config, impl=attention.impl)
    with psa as handle:
        model.generate(**inputs, **_GREEDY, max_new_tokens=max_tokens, streamer=listener)
        stats = None if handle is None else handle.stats()
    start, first, last = listener.times[0], listener.times[1], listener.times[-1]
    return Answer(
        text="".join(listener.pieces),
        tokens=len(listener.times) - 1,
        prefill_seconds=first - start,
        decode_seconds=last - first,
        attention=stats,
    )
