"""What pydantic finds wrong with settings, in this library's words."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from psa_triton.names import unknown_name

_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 200
_SHORTENED.maxlist = _SHORTENED.maxdict = 12
_SHORTENED.maxlevel = 3


def shown(given: object) -> str:
    """What came, for a message: a file of aliases may hold more than any page."""
    return _SHORTENED.repr(given)


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
            return f"{path.rpartition('.')[0]}: expected more values, got {shown(given)}"
        case "too_long":
            return f"{path}: expected {details['ctx']['max_length']} values, got {shown(given)}"
        case "too_short":
            return f"{path}: expected at least {details['ctx']['min_length']} of them, got {shown(given)}"
        case "missing":
            return f"{path}: this key is required"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{path}: expected a mapping, got {shown(given)}"
        case "tuple_type":
            return f"{path}: expected a list, got {shown(given)}"
        case "value_error":
            return f"{path}: {details['ctx']['error']}" if path else str(details["ctx"]["error"])
        case _:
            return f"{path}: {details['msg'].replace('Input should be', 'expected')}, got {shown(given)}"


def keys(model: type[BaseModel]) -> list[str]:
    """The keys that a model of pydantic's takes."""
    return [field.alias or name for name, field in model.model_fields.items()]
