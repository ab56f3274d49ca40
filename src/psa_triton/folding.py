"""How `torch.vmap` goes through the package's operators: the mapped dimension becomes part of the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def register_folding(operator: Any) -> None:
    """Let `torch.vmap` map `operator`, whose tensors, given and returned, all have the batch as first dimension.

    A tensor that is not mapped is the same for every entry of the mapped dimension, and is repeated.

    Args:
        operator: made by `torch.library.custom_op`. What it returns may also be empty tensors of one dimension, which
            stand for something that is not wanted.
    """

    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        given = [_fold(x, dim, size) if isinstance(x, Tensor) else x for x, dim in zip(args, in_dims, strict=True)]
        results = operator(*given)
        if isinstance(results, Tensor):
            return _unfold(results, size), 0
        return tuple(_unfold(x, size) for x in results), tuple(0 for _ in results)

    operator.register_vmap(mapped)


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1) if x.ndim > 2 else x.flatten(1)


def _unfold(x: Tensor, size: int) -> Tensor:
    return x.unflatten(0, (size, -1))
