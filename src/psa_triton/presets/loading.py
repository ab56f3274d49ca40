"""Presets by name, from the shipped file or from one that a user edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from psa_triton.config import PSAConfig
from psa_triton.names import unknown_name
from psa_triton.presets.errors import PresetError, mistakes_of
from psa_triton.presets.schema import SECTIONS, ModelSection, Preset
from psa_triton.presets.yaml_file import read_mapping


@dataclass(frozen=True)
class PresetsFile:
    """A checked presets file.

    Attributes:
        path: where it was read.
        sections: the model sections by name, in the file's order.
    """

    path: Path
    sections: Mapping[str, ModelSection]

    def section(self, model: str) -> ModelSection:
        """The section of a model.

        Raises:
            PresetError: there is none of that name.
        """
        if model not in self.sections:
            raise PresetError(self.path, [unknown_name("model section", model, self.sections)])
        return self.sections[model]

    def preset(self, model: str, name: str | None = None) -> Preset:
        """A preset of a model; its default one if no name is given.

        Raises:
            PresetError: there is no such section, or no such preset in it.
        """
        section = self.section(model)
        name = section.default_attention if name is None else name
        if name not in section.attention_configs:
            message = unknown_name("preset", name, section.attention_configs)
            raise PresetError(self.path, [f"{model}.attention_configs: {message}"])
        return section.attention_configs[name]


def shipped_presets() -> Path:
    """The `attention_config.yaml` that comes with the library.

    An installed package holds it inside; a checkout (or editable install) has it at its root, where people edit it.
    """
    package = Path(str(resources.files("psa_triton")))
    inside = package / "configs" / "attention_config.yaml"
    return inside if inside.is_file() else package.parents[1] / "configs" / "attention_config.yaml"


def load_presets_file(path: str | Path | None = None) -> PresetsFile:
    """Read and check a presets file.

    Args:
        path: the file; None for the one that comes with the library.

    Raises:
        PresetError: with every mistake of the file: its dotted path, what is allowed, what came.
    """
    path = shipped_presets() if path is None else Path(path)
    data = read_mapping(path)
    try:
        sections = SECTIONS.validate_python(data)
    except ValidationError as error:
        raise PresetError(path, [*mistakes_of(error), *_missing_defaults(data)]) from error
    if missing := _missing_defaults(data):
        raise PresetError(path, missing)
    return PresetsFile(path, sections)


def load_preset(model: str, preset: str | None = None, path: str | Path | None = None) -> PSAConfig | None:
    """The attention that a preset describes.

    Args:
        model: name of a model section, such as "Wan2.1_1.3b".
        preset: name of a preset in it; None for the section's `default_attention`.
        path: a presets file; None for the one that comes with the library.

    Returns:
        The configuration, or None for a dense preset.

    Raises:
        PresetError: the file has mistakes, or there is no such section or preset.
    """
    return load_presets_file(path).preset(model, preset).config()


def _missing_defaults(data: Mapping[Any, Any]) -> list[str]:
    """Sections whose default preset does not exist.

    Looks at the raw file, so that this mistake is told together with those that pydantic finds elsewhere.
    """
    mistakes = []
    for model, section in data.items():
        if not isinstance(section, dict):
            continue
        default, presets = section.get("default_attention"), section.get("attention_configs")
        if isinstance(default, str) and isinstance(presets, dict) and default not in presets:
            mistakes.append(f"{model}.default_attention: {unknown_name('preset', default, map(str, presets))}")
    return mistakes
