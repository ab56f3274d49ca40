"""Queries, keys and values of attached attentions, as they are attended with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, cast

import torch
from diffusers import DiffusionPipeline
from torch.utils.hooks import RemovableHandle

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers.arguments import Call
from psa_triton.integrations.diffusers.processor import PSAProcessor
from psa_triton.integrations.diffusers.state import AttentionCall, ForwardState

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class QKVTap:
    """Hands q, k and v of the attention call under way to an `on_levels` of `apply_psa`. A context manager.

    ```python
    with QKVTap(pipe) as tap, apply_psa(pipe, config, on_levels=lambda record: keep(record, *tap.read())):
        pipe("a cat surfing")
    ```

    It sits on the modules that attend, as forward hooks that note a call's inputs; only `read` computes anything. For
    dense attention's q, k, v attach a configuration that reads everything: `mask_ratios={1: (0, 1)}`.

    Args:
        pipe: its `transformer` and `transformer_2` are tapped, in one process (no context parallelism).
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._thread = threading.local()
        self._hooks: list[RemovableHandle] = []
        for name in ("transformer", "transformer_2"):
            if (transformer := getattr(pipe, name, None)) is not None:
                modules = [module for module in transformer.modules() if hasattr(module, "processor")]
                self._hooks += [module.register_forward_pre_hook(self._note, with_kwargs=True) for module in modules]

    def read(self) -> QKV:
        """q, k and v of this thread's call under way, `[B, H, N, D]` each, rotary embedding applied, in its order.

        The layer's projections are computed a second time for it.

        Raises:
            RuntimeError: no attention that PSA is attached to has been called.
        """
        call: tuple[Any, Call] | None = getattr(self._thread, "call", None)
        if call is None:
            raise RuntimeError("read: expected an attention call under way; call it from on_levels of apply_psa")
        module, (args, kwargs) = call
        state = _Reading()
        # The processor itself knows how its model makes q, k and v; all that it asks of its state, `_Reading` has.
        type(module.processor)(module.processor.dense, 0, cast(ForwardState, state))(module, *args, **kwargs)
        return state.qkv

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._thread = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @torch.compiler.disable
    def _note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(module.processor, PSAProcessor):
            self._thread.call = module, (args, kwargs)


class _Reading:
    """The state of a forward that keeps q, k and v, and attends to nothing."""

    parallel = None
    qkv: QKV

    @contextmanager
    def call(self, *_: Any) -> Iterator[AttentionCall]:
        yield AttentionCall(PSAConfig())

    def attend(
        self, call: AttentionCall, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix_tokens: int = 0
    ) -> torch.Tensor:
        self.qkv = q, k, v
        return q
