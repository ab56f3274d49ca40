"""The package's operators of torch: what a compiled graph, `torch.vmap` and fake tensors see of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def operator(
    name: str, fake: Callable[..., Any], *, schema: str | None = None, vmap: bool = True
) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function the operator `psa_triton::name`, which writes to none of its arguments, and knows no autocast.

    Args:
        name: of the operator.
        fake: its shapes without values; arguments and results of the function.
        schema: its types, `(...) -> ...`; by default told by the function's annotations.
        vmap: whether `torch.vmap` may map it. Then its tensors, given and returned, all have the batch as first
            dimension, of which the mapped one becomes a part; what it returns may also be empty tensors of one
            dimension, which stand for something that is not wanted.
    """

    def register(function: Callable[..., Any]) -> Any:
        @wraps(function)
        def run(*args: Any) -> Any:
            with without_autocast(next((x for x in args if isinstance(x, Tensor)), None)):
                return function(*args)

        types = schema or torch.library.infer_schema(function, mutates_args=())
        made = torch.library.custom_op(f"psa_triton::{name}", run, mutates_args=(), schema=types)
        made.register_fake(fake)
        if vmap:
            made.register_vmap(lambda info, in_dims, *args: _mapped(made, info.batch_size, in_dims, args))
        return made

    return register


def without_autocast(x: Tensor | None) -> AbstractContextManager[Any]:
    """Where products on the device of `x` are of their operands' dtype, whatever `torch.autocast` makes of others."""
    device = "cpu" if x is None else x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def each_item(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """`function` of every batch item by itself, one after another: tensors among `args` are cut, the others shared.

    The bits of a torch product depend on the size of the batch, and choices between near ties on bits.
    """
    count = next(len(x) for x in args if isinstance(x, Tensor))
    if count < 2:
        return function(*args)
    items = ([x[i : i + 1] if isinstance(x, Tensor) else x for x in args] for i in range(count))
    return torch.cat([function(*item) for item in items])


def _mapped(made: Any, size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    given = [_fold(x, dim, size) if isinstance(x, Tensor) else x for x, dim in zip(args, in_dims, strict=True)]
    results = made(*given)
    if isinstance(results, Tensor):
        return _unfold(results, size), 0
    return tuple(_unfold(x, size) for x in results), tuple(0 for _ in results)


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension as a part of the batch; what is not mapped is the same for each, and repeated."""
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1) if x.ndim > 2 else x.flatten(1)


def _unfold(x: Tensor, size: int) -> Tensor:
    return x.unflatten(0, (size, -1))
