"""Answering the one call of `F.scaled_dot_product_attention` inside an attention processor, which runs as it is."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from diffusers.models import attention_dispatch

from psa_triton.integrations.diffusers.call import LayerCall
from psa_triton.integrations.diffusers.forward import ForwardState


def _of_dense(name: str) -> property:
    """An attribute that the dense processor has, or has not."""
    return property(lambda self: getattr(self.dense, name), lambda self, value: setattr(self.dense, name, value))


class PSAProcessor:
    """A layer's attention processor with its attention answered by PSA, where the forward's state says so.

    Args:
        dense: the processor it stands in for, which does all else.
        layer: index of the layer.
        state: of the transformer.
    """

    def __init__(self, dense: Any, layer: int, state: ForwardState) -> None:
        self.dense = dense
        self._layer = layer
        self._state = state
        # Of its own, so that neither a backend nor context parallelism, set on the other at any time, is in the way:
        # under `native` torch's function is called, and with this process's share of the tokens.
        self._sparse = copy.copy(dense) if state.family.processor is None else state.family.processor(dense)
        self._names_backend = hasattr(self._sparse, "_attention_backend")
        if self._names_backend:
            self._sparse._attention_backend = "native"
        if hasattr(self._sparse, "_parallel_config"):
            self._sparse._parallel_config = None

    def __reduce__(self) -> tuple[Any, ...]:
        return wrap_processor, (self.dense, self._layer, self._state)

    # diffusers chooses an attention backend, and configures context parallelism, by these attributes of the processor
    # in place. It is the dense one that reads them. A dense processor without them keeps `hasattr` false here.
    _attention_backend = _of_dense("_attention_backend")
    _parallel_config = _of_dense("_parallel_config")

    def _run(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        is_blocked = any(type(value).__name__ == "BlockMask" for value in (*args, *kwargs.values()))
        call = LayerCall(self._state, self._layer, "block mask" if is_blocked else None)
        if call.is_dense:
            # Looked at, and not changed.
            with call:
                return self.dense(attn, *args, **kwargs)
        with call, nullcontext() if self._names_backend else native_backend():
            return self._sparse(attn, *args, **kwargs)


def wrap_processor(dense: Any, layer: int, state: ForwardState) -> PSAProcessor:
    """A `PSAProcessor` around `dense` that shows its signature: modules leave out arguments that a processor lacks."""
    kind: Any = type(dense)
    return _wrapper(kind)(dense, layer, state)


@cache
def _wrapper(kind: Any) -> type[PSAProcessor]:
    @torch.compiler.disable
    def __call__(self: PSAProcessor, attn: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(attn, *args, **kwargs)

    __call__.__signature__ = inspect.signature(kind.__call__)
    return type(f"PSA{kind.__name__}", (PSAProcessor,), {"__call__": __call__, "__module__": __name__})


_native = threading.Lock()
_inside: list[Any] = []
"""The context of diffusers' `attention_backend` that the first of the threads inside has entered, once for each."""


@contextmanager
def native_backend() -> Iterator[None]:
    """Diffusers' `attention_backend("native")`, which is of the whole process, for several threads at a time."""
    with _native:
        context = _inside[0] if _inside else attention_dispatch.attention_backend("native")
        if not _inside:
            context.__enter__()
        _inside.append(context)
    try:
        yield
    finally:
        with _native:
            _inside.pop()
            if not _inside:
                context.__exit__(None, None, None)
