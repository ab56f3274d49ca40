"""Presets by name, from the shipped file or from one that a user edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from psa_triton.config import PSAConfig
from psa_triton.models import MODELS, PRESET_SECTIONS, preset_section
from psa_triton.names import unknown_name
from psa_triton.presets.errors import PresetError, mistakes_of
from psa_triton.presets.schema import SECTIONS, ModelSection, Preset
from psa_triton.presets.yaml_file import parse_mapping, read_mapping


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
        """The section of a model, which goes by the section's name or by a model's key.

        Raises:
            PresetError: there is none of that name.
        """
        return self.sections[self.section_name(model)]

    def section_name(self, model: str) -> str:
        """The name of a model's section, from that or from the model's key.

        Raises:
            PresetError: there is none of that name.
        """
        name = model if model in self.sections else preset_section(model)
        if name not in self.sections:
            keys = [key for key, section in PRESET_SECTIONS.items() if section in self.sections]
            raise PresetError(self.path, [unknown_name("model section", model, {*self.sections, *keys})])
        return name

    def preset(self, model: str, name: str | None = None) -> Preset:
        """A preset of a model, which goes by its section or key; its default one if no name is given.

        Raises:
            PresetError: there is no such section, or no such preset in it.
        """
        section = self.section(model)
        name = self._default(model) if name is None else name
        if name not in section.attention_configs:
            message = unknown_name("preset", name, section.attention_configs)
            raise PresetError(self.path, [f"{self.section_name(model)}.attention_configs: {message}"])
        return section.attention_configs[name]

    def attention(self, model: str, name: str | None = None) -> tuple[str, PSAConfig | None]:
        """SECTION/PRESET of a preset, and its configuration, None if it is dense; else as `preset`."""
        preset = self.preset(model, name)
        return f"{self.section_name(model)}/{name or self._default(model)}", preset.config()

    def _default(self, model: str) -> str:
        """The preset a model's key is run with, or else its section's default."""
        spec = MODELS.get(model)
        return (spec and spec.preset) or self.section(model).default_attention


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
        path: the file; None for the one that comes with the library. A section without `default_attention` adds its
            presets to those of the library's section of that name, and takes what else it leaves out from there.

    Raises:
        PresetError: with every mistake of the file: its dotted path, what is allowed, what came.
    """
    path = shipped_presets() if path is None else Path(path)
    return _checked(read_mapping(path), path)


def parse_presets(text: str, path: Path) -> PresetsFile:
    """Check the text of a presets file, as `load_presets_file` does; `path` is what errors call it."""
    return _checked(parse_mapping(text, path), path)


def _checked(data: dict[Any, Any], path: Path) -> PresetsFile:
    data = _filled_in(data, path)
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
        model: name of a model section, such as "Wan2.1_1.3b", or key of a model, such as "wan21_1.3b".
        preset: name of a preset in it; None for the one that the key is run with, or the section's `default_attention`.
        path: a presets file; None for the one that comes with the library.

    Returns:
        The configuration, or None for a dense preset.

    Raises:
        PresetError: the file has mistakes, or there is no such section or preset.
    """
    return load_presets_file(path).preset(model, preset).config()


def _filled_in(data: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The file's sections, those that add to the library's put together with it."""
    shipped = shipped_presets()
    partial = [
        name for name, section in data.items() if isinstance(section, dict) and "default_attention" not in section
    ]
    if not partial or (path.exists() and path.samefile(shipped)):
        return data
    known = read_mapping(shipped)
    return data | {name: _added(known[name], data[name]) for name in partial if name in known}


def _added(known: dict[Any, Any], section: dict[Any, Any]) -> dict[Any, Any]:
    presets, mine = known["attention_configs"], section.get("attention_configs", {})
    return known | section | {"attention_configs": presets | mine if isinstance(mine, dict) else mine}


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
