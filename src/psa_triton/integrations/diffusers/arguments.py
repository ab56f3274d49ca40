"""Reading and replacing one argument of a hooked call, however the caller passed it."""

from __future__ import annotations

from typing import Any

Call = tuple[tuple[Any, ...], dict[str, Any]]


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """The argument that stands at `position` in the signature and is called `name`; None if the call leaves it out."""
    return args[position] if position < len(args) else kwargs.get(name)


def with_argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any) -> Call:
    """The same call with that argument replaced, passed the way it was passed before."""
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}
