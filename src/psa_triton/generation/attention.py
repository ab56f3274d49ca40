"""Which attention a video is made with: a preset, or dense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psa_triton.config import PSAConfig
from psa_triton.generation.source import ModelSource
from psa_triton.impl import Impl
from psa_triton.presets import load_presets_file

DENSE_NAME = "dense"


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How the self-attention of the transformer is computed."""

    name: str
    """SECTION/PRESET, or `dense`."""
    config: PSAConfig | None
    """None for dense attention."""
    impl: Impl = "auto"
    """Implementation of the sparse operator."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a sidecar, with all of the configuration that has a part in the result."""
        config = None if self.config is None else self.config.model_dump(mode="json", exclude={"verbose"})
        return {"preset": self.name, "impl": self.impl, "config": config}


DENSE = Attention(name=DENSE_NAME, config=None)


def choose_attention(
    source: ModelSource, preset: str | None = None, *, file: Path | None = None, impl: Impl = "auto"
) -> Attention:
    """The attention of a preset.

    Args:
        source: the model; its section of the presets file is searched.
        preset: a preset of that section; "SECTION/PRESET" for another model's; `dense` for none; None for the
            model's default.
        file: a presets file of the user's own; None for the one that comes with the library.
        impl: implementation of the sparse operator.

    Raises:
        ValueError: the file has mistakes, the preset does not exist, or the model is unknown and no section is named.
    """
    if preset == DENSE_NAME:
        return DENSE
    spec = source.spec
    section = None if spec is None else spec.preset_section
    if preset is not None and "/" in preset:
        section, _, preset = preset.partition("/")
    if section is None:
        raise ValueError(
            f"attention_preset: {source.name} is no model I know, so it has no presets: give SECTION/PRESET to borrow "
            "a known model's (see `psa presets list`), or --dense"
        )
    presets = load_presets_file(file)
    if preset is None and spec is not None:
        preset = spec.preset
    name = preset or presets.section(section).default_attention
    config = presets.preset(section, name).config()
    return Attention(name=f"{section}/{name}", config=config, impl=impl)
