"""A preset put into a user's presets file by adding lines: what else stands there stays as it was written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from psa_triton.config import PSAConfig
from psa_triton.presets import PresetsFile, load_presets_file, parse_presets, shipped_presets
from psa_triton.tools.files import Write, write_file

_HEADER = "# My presets: `psa presets validate FILE` checks them, `psa generate --config FILE` uses them.\n\n"
_PRESETS = "attention_configs"
_COMMENT = re.compile(r"(^|\s)#")


class _Entry(NamedTuple):
    """A key of a mapping, and the lines that it takes."""

    key: yaml.Node
    value: yaml.Node
    start: int
    """Where its first line begins, in characters."""
    end: int
    """Where the line after its last begins."""


def check_output(path: Path) -> None:
    """Check that a file may be written or edited.

    Raises:
        ValueError: it is the one that comes with the library.
        FileNotFoundError: its folder does not exist.
    """
    shipped = shipped_presets()
    if path.exists() and path.samefile(shipped):
        raise ValueError(f"output: {path} comes with the library and is never written; name a file of your own")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"output: there is no folder {path.absolute().parent}")


def file_with_preset(path: Path, section: str, name: str, config: PSAConfig, *, base: Path) -> str:
    """The text of a presets file once it has a preset.

    A file that is not there yet, or lacks the model's section, gets that section as it stands in `base`. A preset of
    the same name is replaced.

    Args:
        path: the file; it is not changed.
        section: of the model.
        name: of the preset.
        config: what it says, in budget mode.
        base: a presets file that has the section.

    Raises:
        PresetError: the file has mistakes.
        ValueError: lines cannot be added to it, or comments inside the preset to replace would be lost.
    """
    text = _HEADER
    if path.exists():
        load_presets_file(path)
        text = _read(path)
    if not path.exists() or _find(text, section) is None:
        found = _find(source := _read(base), section)
        assert found is not None  # the base preset was read from there
        text = f"{_closed(text)}{source[found.start : found.end]}"
    return _put(text, path, section, name, config)


def write_presets(path: Path, text: str, section: str, name: str, config: PSAConfig, write: Write = write_file) -> None:
    """Write the text, by `write`.

    Raises:
        ValueError: read back, it would say something else than the file does now and `config`; nothing is written.
    """
    before = load_presets_file(path) if path.exists() else None
    after = parse_presets(text, path)
    if after.section(section).attention_configs[name].config() != config or not _others_kept(
        before, after, section, name
    ):
        raise ValueError(f"output: lines cannot be added to {path} as it is written; name another file")
    write(path, text.encode())


def _others_kept(before: PresetsFile | None, after: PresetsFile, section: str, name: str) -> bool:
    if before is None:
        return True
    presets = {(model, preset): x for model, s in after.sections.items() for preset, x in s.attention_configs.items()}
    return all(
        presets.get((model, preset)) == found
        for model, known in before.sections.items()
        for preset, found in known.attention_configs.items()
        if (model, preset) != (section, name)
    )


def _put(text: str, path: Path, section: str, name: str, config: PSAConfig) -> str:
    presets = _find(text, section, _PRESETS)
    inside = _find(text, section)
    assert presets is not None and inside is not None  # as the file has been checked
    for entry in (inside, presets):
        if not isinstance(entry.value, yaml.MappingNode) or entry.value.flow_style:
            raise ValueError(
                f"output: expected {section} and its {_PRESETS} line by line in {path}, got braces or an alias, "
                "where no line can be added; name another file"
            )
    first, _ = presets.value.value[0]
    lines = _preset_lines(name, config, " " * first.start_mark.column, "\r\n" if "\r\n" in text else "\n")
    old = _find(text, section, _PRESETS, name)
    if old is None:
        head = _closed(text[: presets.end])
        return head + lines + text[presets.end :]
    if _COMMENT.search(text[old.start : old.end]):
        raise ValueError(
            f"preset_name: {section}/{name} in {path} has comments, which would be lost with it; remove them, or "
            "choose another name"
        )
    return text[: old.start] + lines + text[old.end :]


def _preset_lines(name: str, config: PSAConfig, indent: str, newline: str) -> str:
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude={"mask_ratios", "budget"})
    sizes = {"m": config.block_m, "n": config.block_n, "tile_n": config.tile_n}
    for field in ("block_m", "block_n", "tile_n"):
        settings.pop(field, None)
    words, table = settings.pop("description", ""), settings.pop("budget_table", [])
    preset = {"type": "psa", "description": words, "block_size": sizes, **settings, "budget": config.budget}
    # None: lists of numbers and the block sizes in one line, everything else line by line.
    dumped = yaml.safe_dump(
        {name: {**preset, "budget_table": table}},
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=120 - len(indent),
    )
    return "".join(f"{indent}{line}{newline}" for line in dumped.splitlines())


def _read(path: Path) -> str:
    """The text with its line ends as they are."""
    return path.read_bytes().decode("utf-8")


def _closed(text: str) -> str:
    """The text with its last line ended."""
    return text if not text or text.endswith("\n") else f"{text}\n"


def _find(text: str, *path: str) -> _Entry | None:
    """The entry at a path of keys."""
    node, entry = yaml.compose(text, Loader=yaml.SafeLoader), None
    for name in path:
        found = [pair for pair in node.value if pair[0].value == name] if isinstance(node, yaml.MappingNode) else []
        if not found:
            return None
        key, node = found[0]
        entry = _Entry(key, node, key.start_mark.index - key.start_mark.column, _line_after(text, _end(node)))
    return entry


def _end(node: yaml.Node) -> int:
    """Where the last thing in a node ends; the node's own mark is after the blank lines and comments that follow."""
    if not isinstance(node, yaml.CollectionNode) or not node.value or node.flow_style:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)


def _line_after(text: str, end: int) -> int:
    """Where the line after the one that holds the character before `end` begins."""
    newline = text.find("\n", max(0, end - 1))
    return len(text) if newline < 0 else newline + 1
