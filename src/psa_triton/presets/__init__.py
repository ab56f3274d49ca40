"""`configs/attention_config.yaml` -> `PSAConfig`: read and check."""

from __future__ import annotations

from psa_triton.presets.errors import PresetError
from psa_triton.presets.loading import (
    DENSE,
    NamedAttention,
    PresetsFile,
    load_preset,
    load_presets_file,
    resolve,
    shipped_presets,
)
from psa_triton.presets.schema import ModelSection, VideoScale, presets_json_schema

__all__ = [
    "DENSE",
    "ModelSection",
    "NamedAttention",
    "PresetError",
    "PresetsFile",
    "VideoScale",
    "load_preset",
    "load_presets_file",
    "presets_json_schema",
    "resolve",
    "shipped_presets",
]
