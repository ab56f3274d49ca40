"""How typer gets a command's options, and how some of them are read.

A command's options are the fields of a dataclass, in the order of its help; a field that is such a dataclass itself is
a group that several commands have. Nothing heavy is imported here: `--help` and slips wait for no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass, replace
from importlib import import_module
from inspect import Parameter, Signature
from typing import Any, Final, get_type_hints

import typer

_INDEXES = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
REQUIRED: Final[Any] = ...
"""Default of an option that has none, as typer writes it."""


def option(default: Any, help: str | None, *names: str, **more: Any) -> Any:
    """A field that is an option; `names` where they are not that of the field, `more` as `typer.Option` takes it."""
    return field(default=default, metadata={"option": lambda value: typer.Option(value, *names, help=help, **more)})


def command(defaults: Any, run: str, **context: Any) -> Callable[..., None]:
    """A command for typer.

    Args:
        defaults: the command's dataclass of options: its docstring is the help, its values are the defaults.
        run: the module of this package that is imported when the command is called; its function `run` gets the options
            and `context`.
    """

    def call(**given: Any) -> None:
        import_module(f"{__package__}.{run}").run(_filled(defaults, given), **context)

    call.__doc__ = type(defaults).__doc__
    call.__signature__ = Signature([*_parameters(defaults)])  # type: ignore[attr-defined]
    return call


def _parameters(defaults: Any) -> Iterator[Parameter]:
    hints = get_type_hints(type(defaults))
    for each in fields(defaults):
        value = getattr(defaults, each.name)
        if is_dataclass(value):
            yield from _parameters(value)
        else:
            default = each.metadata["option"](value)
            yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[each.name])


def _filled(defaults: Any, given: Mapping[str, Any]) -> Any:
    """The options with what the command line says."""
    values = {each.name: getattr(defaults, each.name) for each in fields(defaults)}
    return replace(
        defaults,
        **{name: _filled(value, given) if is_dataclass(value) else given[name] for name, value in values.items()},
    )


def read_indexes(name: str, text: str) -> list[int]:
    """Indexes such as `0,2` or `0,36-39`, each once.

    Raises:
        ValueError: it is no list of indexes.
    """
    found: set[int] = set()
    for part in text.split(","):
        indexes = _INDEXES.fullmatch(part.strip())
        new = [] if indexes is None else range(int(indexes["first"]), int(indexes["last"] or indexes["first"]) + 1)
        if not new:
            raise ValueError(f"{name}: expected indexes such as 0,1 or 0,36-39, got {text!r}")
        found.update(new)
    return sorted(found)


def refuse(given: Mapping[str, Any], reason: str) -> None:
    """Refuse options that go with another way of using a command.

    Raises:
        ValueError: one of them was given.
    """
    if names := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(names)}: only for {reason}")
