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
from torch import nn

from psa_triton.integrations.diffusers.call import LayerCall
from psa_triton.integrations.diffusers.forward import ForwardState


class PSAProcessor:
    """A layer's attention processor with its attention answered by PSA, where the forward's state says so.

    To everybody else it looks like the processor that it stands in for: diffusers sets backends, context parallelism
    and scales of IP adapters by attributes, and moves and saves the weights of those processors that are modules.

    Args:
        dense: the processor it stands in for, which does all else.
        layer: index of the layer.
        state: of the transformer.
    """

    def __init__(self, dense: Any, layer: int, state: ForwardState) -> None:
        # Of its own, so that neither a backend nor context parallelism, set on the other at any time, is in the way:
        # under `native` torch's function is called, and with this process's share of the tokens.
        sparse = copy.copy(dense) if state.family.processor is None else state.family.processor(dense)
        names_backend = hasattr(sparse, "_attention_backend")
        if names_backend:
            sparse._attention_backend = "native"
        if hasattr(sparse, "_parallel_config"):
            sparse._parallel_config = None
        vars(self).update(dense=dense, _layer=layer, _state=state, _sparse=sparse, _names_backend=names_backend)

    def __reduce__(self) -> tuple[Any, ...]:
        return wrap_processor, (self.dense, self._layer, self._state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dense, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dense, name, value)
        if name not in ("_attention_backend", "_parallel_config"):
            setattr(self._sparse, name, value)

    def _run(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        call = LayerCall(self._state, self._layer, _other_attention(args, kwargs))
        if call.is_dense:
            # Looked at, and not changed.
            with call:
                return self.dense(attn, *args, **kwargs)
        with call, nullcontext() if self._names_backend else native_backend():
            return self._sparse(attn, *args, **kwargs)


def _other_attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a call is none of plain attention, and runs dense; None if it is."""
    if any(type(value).__name__ == "BlockMask" for value in (*args, *kwargs.values())):
        return "block mask"
    # Perturbed attention guidance answers in the place of torch, too.
    modes = torch.overrides._get_current_function_mode_stack()
    return "perturbed" if any(type(mode).__name__ == "AttentionScoreSkipFunctionMode" for mode in modes) else None


def wrap_processor(dense: Any, layer: int, state: ForwardState) -> PSAProcessor:
    """A `PSAProcessor` around `dense` that shows its signature: modules leave out arguments that a processor lacks."""
    kind: Any = type(dense)
    return _wrapper(kind)(dense, layer, state)


@cache
def _wrapper(kind: Any) -> type[PSAProcessor]:
    @torch.compiler.disable
    def __call__(self: PSAProcessor, attn: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(attn, *args, **kwargs)

    def __new__(cls: Any, *parts: Any) -> Any:
        # diffusers makes new processors by the class of the old ones: those are plain.
        return object.__new__(cls) if parts else kind()

    __call__.__signature__ = inspect.signature(kind.__call__)
    bases = (PSAProcessor, kind) if issubclass(kind, nn.Module) else (PSAProcessor,)
    return type(f"PSA{kind.__name__}", bases, {"__call__": __call__, "__new__": __new__, "__module__": __name__})


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
