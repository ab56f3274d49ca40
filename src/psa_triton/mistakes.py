"""What pydantic finds wrong with settings, in this library's words."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from psa_triton.names import unknown_name


def mistake(path: str, details: ErrorDetails, known: Sequence[str]) -> str:
    """One mistake: where it is, what is allowed there, what came.

    Args:
        path: dotted path of the key at fault.
        details: as pydantic tells it.
        known: the keys that may stand beside it.
    """
    given = details["input"]
    if isinstance(given, tuple):  # PSAConfig turns lists into tuples before it checks them
        given = list(given)
    match details["type"]:
        case "extra_forbidden":
            return f"{path}: {unknown_name('key', str(details['loc'][-1]), known)}"
        case "missing" if isinstance(details["loc"][-1], int):
            return f"{path.rpartition('.')[0]}: expected more values, got {given!r}"
        case "too_long":
            return f"{path}: expected {details['ctx']['max_length']} values, got {given!r}"
        case "too_short":
            return f"{path}: expected at least {details['ctx']['min_length']} of them, got {given!r}"
        case "missing":
            return f"{path}: this key is required"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{path}: expected a mapping, got {given!r}"
        case "tuple_type":
            return f"{path}: expected a list, got {given!r}"
        case "value_error":
            return f"{path}: {details['ctx']['error']}" if path else str(details["ctx"]["error"])
        case _:
            return f"{path}: {details['msg'].replace('Input should be', 'expected')}, got {given!r}"


def keys(model: type[BaseModel]) -> list[str]:
    """The keys that a model of pydantic's takes."""
    return [field.alias or name for name, field in model.model_fields.items()]
