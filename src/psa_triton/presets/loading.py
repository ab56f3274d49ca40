"""Presets by name, from the shipped file or from one that a user edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from psa_triton.config import PSAConfig
from psa_triton.models import MODELS, PRESET_SECTIONS, preset_section
from psa_triton.names import unknown_name
from psa_triton.presets.errors import PresetError, mistakes_of
from psa_triton.presets.schema import SECTIONS, ModelSection, VideoScale
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


@dataclass(frozen=True)
class NamedAttention:
    """The attention that a name stands for."""

    name: str
    """SECTION/PRESET, or `dense`."""
    config: PSAConfig | None
    """None for dense attention."""
    description: str = ""
    """What the preset is for, in words."""
    video_scale: VideoScale | None = None
    """What the file says of the model; None for the preset of another model, and for `dense`."""


DENSE: Final = NamedAttention("dense", None)
"""Dense attention, of whichever model."""


def resolve(name: str | None = None, section: str | None = None, file: str | Path | None = None) -> NamedAttention:
    """The attention that a name stands for: the one way from a name to a configuration.

    Args:
        name: a preset of the section; "SECTION/PRESET" for one of another section; `dense`; None for the preset that
            the model is run with.
        section: a model, by the name of its section or by its key, such as "wan21_1.3b"; None for an unknown model.
        file: a presets file; None for the one that comes with the library.

    Raises:
        TypeError: a name is no string.
        PresetError: the file has mistakes, or there is no such section or preset.
        ValueError: neither `name` nor `section` tells the section.
    """
    for argument, value in (("preset", name), ("model", section)):
        if not isinstance(value, str | None):
            raise TypeError(f"{argument}: expected a name, got {type(value).__name__}")
    if name == DENSE.name:
        return DENSE
    other, _, preset = (None, None, None) if name is None else name.rpartition("/")
    model = other or section
    if model is None:
        raise ValueError(f"name: expected SECTION/PRESET, as no model tells the section, got {name!r}")
    presets = load_presets_file(file)
    of_model, found = presets.section(model), presets.section_name(model)
    spec = MODELS.get(model)
    if preset is None:
        preset = (spec and spec.preset) or of_model.default_attention
    if preset not in of_model.attention_configs:
        message = unknown_name("preset", preset, of_model.attention_configs)
        raise PresetError(presets.path, [f"{found}.attention_configs: {message}"])
    described = of_model.attention_configs[preset]
    own = section is not None and preset_section(section) == found
    return NamedAttention(
        f"{found}/{preset}", described.config(), described.description, of_model.video_scale if own else None
    )


def load_preset(model: str, preset: str | None = None, path: str | Path | None = None) -> PSAConfig | None:
    """The attention that a preset describes.

    Args:
        model: name of a model section, such as "Wan2.1_1.3b", or key of a model, such as "wan21_1.3b".
        preset: name of a preset in it; None for the one that the key is run with, or the section's `default_attention`.
        path: a presets file; None for the one that comes with the library.

    Returns:
        The configuration, or None for a dense preset.

    Raises:
        TypeError: a name is no string.
        PresetError: the file has mistakes, or there is no such section or preset.
    """
    return resolve(preset, model, path).config


def shipped_presets() -> Path:
    """The `attention_config.yaml` that comes with the library.

    An installed package holds it inside; a checkout (or editable install) has it at its root, where people edit it.
    """
    package = Path(str(resources.files("psa_triton")))
    inside = package / "configs" / "attention_config.yaml"
    return inside if inside.is_file() else package.parents[1] / "configs" / "attention_config.yaml"


def load_presets_file(path: str | Path | None = None) -> PresetsFile:
    """Read and check a presets file, once for as long as it stays unchanged.

    Args:
        path: the file; None for the one that comes with the library. A section without `default_attention` adds its
            presets to those of the library's section of that name, and takes what else it leaves out from there.

    Raises:
        PresetError: with every mistake of the file: its dotted path, what is allowed, what came.
    """
    shipped = shipped_presets()
    path = shipped if path is None else Path(path)
    return _load(path, _version(path), _version(shipped))


@lru_cache(maxsize=16)
def _load(path: Path, *_: Any) -> PresetsFile:
    data = _filled_in(read_mapping(path), path)
    try:
        sections = SECTIONS.validate_python(data)
    except ValidationError as error:
        raise PresetError(path, [*mistakes_of(error), *_missing_defaults(data)]) from error
    if missing := _missing_defaults(data):
        raise PresetError(path, missing)
    return PresetsFile(path, MappingProxyType(sections))


def _version(path: Path) -> tuple[int, ...] | None:
    """What is another as soon as the file is; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


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
