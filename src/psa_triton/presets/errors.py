"""What is wrong with a presets file, said with the file and the dotted path of the key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from psa_triton.config import NESTED
from psa_triton.mistakes import keys, mistake, shown
from psa_triton.presets.schema import DensePreset, ModelSection, PsaPreset, VideoScale

_PRESETS: dict[int | str, type[BaseModel]] = {"psa": PsaPreset, "dense": DensePreset}
_PARENTS: dict[int | str, type[BaseModel]] = {**_PRESETS, **NESTED, "video_scale": VideoScale}


class PresetError(ValueError):
    """A presets file, or a name looked up in it, is wrong.

    Attributes:
        path: the file.
        mistakes: every mistake found, each `dotted.path.of.key: what is allowed, what came`.
    """

    def __init__(self, path: Path, mistakes: Sequence[str]) -> None:
        self.path = path
        self.mistakes = tuple(mistakes)
        if len(self.mistakes) == 1:
            super().__init__(f"{path}: {self.mistakes[0]}")
        else:
            super().__init__("\n  ".join([f"{path}: {len(self.mistakes)} mistakes", *self.mistakes]))


def mistakes_of(error: ValidationError) -> list[str]:
    """One line for each mistake that pydantic found in the sections of a presets file."""
    return [_mistake(details) for details in error.errors(include_url=False)]


def _mistake(details: ErrorDetails) -> str:
    path = _dotted(details["loc"])
    match details["type"]:
        case "union_tag_not_found":
            return f"{path}.type: this key is required: psa or dense"
        case "union_tag_invalid":
            return f"{path}.type: expected psa or dense, got {shown(details['input']['type'])}"
        case "value_error":
            return _own_message(path, str(details["ctx"]["error"]))
        case _:
            return mistake(path, details, _known_keys(details["loc"]))


def _own_message(path: str, message: str) -> str:
    """Checks across keys are reported on the preset and start with the key at fault: move that key into the path."""
    key, colon, rest = message.partition(": ")
    parent = NESTED.get(path.rpartition(".")[2], PsaPreset)
    if colon and key in {known.partition(".")[0] for known in keys(parent)}:
        return f"{path}.{key}: {rest}"
    return f"{path}: {message}"


def _dotted(location: Sequence[int | str]) -> str:
    """A location of pydantic's without what is not in the file: the chosen preset class and the marker of bad keys."""
    parts = list(location)
    if len(parts) > 3 and parts[1] == "attention_configs" and parts[3] in _PRESETS:
        del parts[3]
    return ".".join(str(part) for part in parts if part != "[key]")


def _known_keys(location: Sequence[int | str]) -> list[str]:
    parents = [part for part in location[:-1] if isinstance(part, str)]  # a list's entries go by its name
    parent = ModelSection if len(location) == 2 else _PARENTS.get(parents[-1]) if parents else None
    return [] if parent is None else keys(parent)
