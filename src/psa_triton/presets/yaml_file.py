"""Reading a YAML mapping that people edit by hand: a key that stands twice is a mistake, not the last one's win."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from psa_triton.presets.errors import PresetError

_MERGE: Final = "tag:yaml.org,2002:merge"
"""Of the key `<<`, which stands for those of another mapping."""


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, every key once.

    Raises:
        PresetError: the file cannot be read, is no YAML, is no mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PresetError(path, [f"cannot be read ({error.strerror}); give the path of a presets file"]) from error
    except UnicodeDecodeError as error:
        raise PresetError(path, [f"expected YAML in UTF-8, got other bytes ({error.reason})"]) from error
    try:
        data = yaml.safe_load(text)
        twice = list(_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a scalar that looks like a date or number and is none, such as 2024-13-45.
        raise PresetError(path, [f"expected YAML, got text that does not parse: {error}"]) from error
    except RecursionError as error:
        raise PresetError(path, ["expected YAML, got brackets or mappings too deep to be a presets file"]) from error
    if not isinstance(data, dict):
        came = "an empty file" if data is None else type(data).__name__
        raise PresetError(path, [f"expected a mapping of model sections, got {came}"])
    if twice:
        raise PresetError(path, twice)
    return data


def _repeated_keys(root: yaml.Node | None) -> Iterator[str]:
    """A message for each key that stands more than once in its mapping; anchors are looked into once.

    However it is spelled: 1, 01 and 1.0 are one key.
    """
    loader, seen = yaml.SafeLoader(""), set[int]()
    waiting: list[tuple[str, yaml.Node]] = [] if root is None else [("", root)]
    while waiting:
        place, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend((f"{place}{index}.", child) for index, child in enumerate(node.value))
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key, child in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                same = name if key.tag == _MERGE else loader.construct_object(key, deep=True)
                if same in lines:
                    yield f"{place}{name}: key given twice, in lines {lines[same]} and {line}; keep one"
                lines[same] = line
                waiting.append((f"{place}{name}.", child))
