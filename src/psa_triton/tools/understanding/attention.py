"""Which attention a prompt is read with: a preset, or dense."""

from __future__ import annotations

from pathlib import Path

from psa_triton.impl import Impl
from psa_triton.models import QWEN2_5_VL
from psa_triton.presets import load_presets_file
from psa_triton.tools.generation import DENSE, Attention


def choose_attention(preset: str | None = None, *, file: Path | None = None, impl: Impl = "auto") -> Attention:
    """The attention of a preset.

    Args:
        preset: a preset of the section `Qwen2.5-VL`; "SECTION/PRESET" for another section's; `dense` for none; None for
            the section's default.
        file: a presets file of the user's own; None for the one that comes with the library.
        impl: implementation of the sparse operator.

    Raises:
        ValueError: the file has mistakes, or the preset does not exist.
    """
    if preset == DENSE.name:
        return DENSE
    section = QWEN2_5_VL.preset_section
    if preset is not None and "/" in preset:
        section, _, preset = preset.partition("/")
    name, config = load_presets_file(file).attention(section, preset)
    return Attention(name=name, config=config, impl=impl)
