"""Which attention a prompt is read with: a preset, or dense."""

from __future__ import annotations

from pathlib import Path

from psa_triton.impl import Impl
from psa_triton.models import QWEN2_5_VL
from psa_triton.presets import resolve
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
    found = resolve(preset, QWEN2_5_VL.preset_section, file)
    return Attention(name=found.name, config=found.config, impl=impl)
