"""What stands around a model: wrappers that call it, and which library it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import nn


def unwrap(model: Any) -> Any:
    """The model inside all wrappers that only call it; the model itself if there are none.

    Known are PEFT's `PeftModel`, what `torch.compile` returns, and wrappers that hold the model as their `module`, as
    `DistributedDataParallel`, `DataParallel`, `FullyShardedDataParallel` and `AveragedModel` do.
    """
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: Any) -> nn.Module | None:
    if not isinstance(model, nn.Module):
        return None
    if callable(base := getattr(model, "get_base_model", None)):
        return base()
    parts = (getattr(model, name, None) for name in ("_orig_mod", "module"))
    return next((part for part in parts if isinstance(part, nn.Module)), None)


Library = Literal["diffusers", "transformers"]

_ROOTS: dict[str, Library] = {
    "ModelMixin": "diffusers",
    "DiffusionPipeline": "diffusers",
    "ModularPipeline": "diffusers",
    "PreTrainedModel": "transformers",
    "Pipeline": "transformers",
}
"""The classes that every model and pipeline derives from."""


def library(model: object) -> Library | None:
    """The library that a model or pipeline is of, or derived from, told without importing either."""
    for base in type(model).__mro__:
        if base.__module__.partition(".")[0] == (found := _ROOTS.get(base.__name__)):
            return found
    return None


def parts(target: Any) -> list[tuple[str, nn.Module]]:
    """Modules that an object holds, with their names: children of a module, components of a pipeline, attributes."""
    held = target.named_children() if isinstance(target, nn.Module) else getattr(target, "__dict__", {}).items()
    return [(name, part) for name, part in held if isinstance(part, nn.Module)]


def held_models(target: Any) -> Iterator[tuple[str, Any]]:
    """Every module that an object holds, at any depth, unwrapped, with its path."""
    for name, part in parts(target):
        for path, module in part.named_modules(prefix=name):
            yield path, unwrap(module)


def unsupported(argument: str, expected: str, model: Any, fits: Callable[[Any], Any], own: Library | None) -> TypeError:
    """The error about a model that is not what was expected, with what to pass instead.

    Args:
        argument: name of the argument.
        expected: in words.
        model: that was passed.
        fits: whether a module would do.
        own: the library whose models are expected; None for any.
    """
    kind, source = type(model).__name__, library(model)
    inside = next((path for path, part in held_models(model) if fits(part)), None)
    advice = "" if inside is None else f"; there is one in it: pass its `{inside}`"
    if source is not None and source != own:
        advice = f" of {source}; pass it to psa_triton.apply_psa or psa_triton.integrations.{source}.apply_psa"
    return TypeError(f"{argument}: expected {expected}, got {kind}{advice}")
