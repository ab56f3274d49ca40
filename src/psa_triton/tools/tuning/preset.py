"""From an allocation to the preset that carries it, in a presets file of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from psa_triton.config import BudgetRow, PSAConfig
from psa_triton.presets import load_presets_file, shipped_presets
from psa_triton.presets.schema import check_preset_name
from psa_triton.presets.yaml_file import read_mapping
from psa_triton.tools.tuning.allocation import Allocation, Cell
from psa_triton.tools.tuning.plan import RunPart

_DIGITS: Final = 4
_HEADER: Final = (
    "# Made by psa tune, which may write it anew; comments of yours would be lost.\n"
    "# `psa presets validate FILE` checks it, `psa generate --config FILE` uses it.\n\n"
)
_PRESETS: Final = "attention_configs"


def tuned_config(
    base: PSAConfig, cells: Sequence[Cell], parts: Sequence[RunPart], allocation: Allocation, *, steps: int, words: str
) -> PSAConfig:
    """`base` with a table of budgets.

    Args:
        base: blocks, order and warm-up.
        cells: every layer in every part.
        parts: in order.
        allocation: of the cells.
        steps: of the run that was measured.
        words: the description.
    """
    budgets = {
        (cell.part, cell.layer): _down(point.budget) for cell, point in zip(cells, allocation.points, strict=True)
    }
    layers = 1 + max(cell.layer for cell in cells)
    table = tuple(
        BudgetRow(start=_start(part, steps) if row else 0.0, budgets=tuple(budgets[row, x] for x in range(layers)))
        for row, part in enumerate(parts)
    )
    return base.replace(description=words, budget=_down(allocation.cost), budget_table=table)


def presets_with(path: Path, section: str, name: str, config: PSAConfig, *, base: Path | None) -> bytes:
    """A presets file with one preset more, or another of that name.

    Args:
        path: where it is going to be. What an earlier run wrote there is kept.
        section: of the model.
        name: of the preset.
        config: what it says, in budget mode.
        base: a presets file to take the rest of the section from; None: it adds to the library's.

    Raises:
        FileNotFoundError: the folder does not exist.
        PresetError: the file has mistakes.
        ValueError: a preset of that name could not be asked for, or the file that is there is not by `psa tune`, or
            comes with the library.
    """
    try:
        check_preset_name(name)
    except ValueError as error:
        raise ValueError(f"preset_name: {error}") from error
    if path.exists() and path.samefile(shipped_presets()):
        raise ValueError(f"output: {path} comes with the library and is never written; name a file of your own")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"output: there is no folder {path.absolute().parent}")
    sections: dict[Any, Any] = {}
    if path.exists():
        load_presets_file(path)
        if not path.read_text(encoding="utf-8").startswith(_HEADER):
            raise ValueError(
                f"output: {path} was not written by psa tune, which would lose its comments; name another file, and "
                "copy the preset from there"
            )
        sections = read_mapping(path)
    known = sections.get(section) or ({} if base is None else read_mapping(base)[section])
    sections[section] = known | {_PRESETS: known.get(_PRESETS, {}) | {name: _preset(config)}}
    # None: lists of numbers and the block sizes in one line, everything else line by line.
    style: dict[str, Any] = dict(sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    return (_HEADER + yaml.safe_dump(sections, **style)).encode()


def _preset(config: PSAConfig) -> dict[str, Any]:
    elsewhere = {"mask_ratios", "budget", "block_m", "block_n", "tile_n"}
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=elsewhere)
    sizes = {"m": config.block_m, "n": config.block_n, "tile_n": config.tile_n}
    words, table = settings.pop("description", ""), settings.pop("budget_table", [])
    preset = {"type": "psa", "description": words, "block_size": sizes, **settings, "budget": config.budget}
    return {**preset, "budget_table": table}


def _start(part: RunPart, steps: int) -> float:
    """Half a step before the first, so that a rounded share is no step late."""
    return round((part.first - 0.5) / steps, _DIGITS)


def _down(value: float) -> float:
    """Rounded, never up; what a sum of floats lacks of a round number is no reason to go down."""
    return math.floor(value * 10**_DIGITS + 1e-6) / 10**_DIGITS
