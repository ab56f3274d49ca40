"""How typer gets a command's options, and how some of them are read.

A command's options are the fields of a class, in the order of its help; the docstring under a field is the option's
help. A field of such a class itself is a group that several commands have. Nothing heavy is imported here: `--help` and
slips wait for no torch.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from importlib import import_module
from inspect import Parameter, Signature
from itertools import pairwise
from types import ModuleType
from typing import Any, Final, TypeVar, dataclass_transform, get_type_hints

import typer

T = TypeVar("T")

_INDEXES = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
REQUIRED: Final[Any] = ...
"""Default of an option that has none, as typer writes it."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options(panel: str | None = None) -> Callable[[type[T]], type[T]]:
    """A class of options, shown under the heading `panel`; by default under that of the class that it extends."""

    def decorated(cls: type[T]) -> type[T]:
        cls.panel = panel or getattr(cls, "panel", None)  # type: ignore[attr-defined]
        return dataclass(frozen=True, kw_only=True)(cls)

    return decorated


def option(*names: str, **more: Any) -> dict[str, Any]:
    """What `Annotated` adds to a field: other `names`, another `panel`, more of what `typer.Option` takes."""
    return {"names": names, **more}


def command(defaults: Any, run: str, **context: Any) -> Callable[..., None]:
    """A command for typer.

    Args:
        defaults: the command's options: the docstring of their class is the help, their values are the defaults.
        run: the module of this package that is imported when the command is called; its function `run` gets the options
            and `context`.
    """

    def call(**given: Any) -> None:
        import_module(f"{__package__}.{run}").run(_filled(defaults, given), **context)

    # A line a paragraph, as terminals differ in width.
    call.__doc__ = "\n\n".join(" ".join(part.split()) for part in (type(defaults).__doc__ or "").split("\n\n"))
    call.__signature__ = Signature([*_parameters(defaults)])  # type: ignore[attr-defined]
    return call


def _parameters(defaults: Any) -> Iterator[Parameter]:
    cls = type(defaults)
    hints = get_type_hints(cls, include_extras=True)
    for name, value in _values(defaults).items():
        if is_dataclass(value):
            yield from _parameters(value)
            continue
        kind, more = hints[name], {}
        if hasattr(kind, "__metadata__"):
            kind, more = kind.__origin__, kind.__metadata__[0]
        settings = {"panel": cls.panel, "help": _help(cls, name), **more}
        default = typer.Option(value, *settings.pop("names", ()), rich_help_panel=settings.pop("panel"), **settings)
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _help(cls: type, name: str) -> str | None:
    """The docstring under a field, of the class or of one that it extends."""
    docs = (_docs(inspect.getmodule(each)).get((each.__name__, name)) for each in cls.__mro__[:-1])
    return next(filter(None, docs), None)


@lru_cache(maxsize=1)
def _docs(module: ModuleType) -> dict[tuple[str, str], str]:
    """The docstrings under the fields of a module's classes, which Python itself does not keep."""
    found = {}
    for cls in ast.parse(inspect.getsource(module)).body:
        if isinstance(cls, ast.ClassDef):
            for field, doc in pairwise(cls.body):
                match field, doc:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        found[cls.name, name] = " ".join(text.split())
    return found


def _values(options: Any) -> dict[str, Any]:
    return {each.name: getattr(options, each.name) for each in fields(options)}


def _filled(defaults: Any, given: Mapping[str, Any]) -> Any:
    """The options with what the command line says."""
    values = _values(defaults).items()
    return replace(
        defaults, **{name: _filled(value, given) if is_dataclass(value) else given[name] for name, value in values}
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


def refuse(options: Any, names: Collection[str], reason: str) -> None:
    """Refuse options, or all of a group, that go with another way of using a command.

    Raises:
        ValueError: one of them is not its default.
    """
    if given := [*_given(options, names)]:
        raise ValueError(f"{', '.join(given)}: only for {reason}")


def _given(options: Any, names: Collection[str]) -> Iterator[str]:
    for each in fields(options):
        value = getattr(options, each.name)
        if is_dataclass(value):
            yield from _given(value, _values(value) if each.name in names else names)
        elif each.name in names and value != each.default:
            yield each.name
