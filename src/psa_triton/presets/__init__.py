"""`configs/attention_config.yaml` -> `PSAConfig`: read and check."""

from __future__ import annotations

from psa_triton.presets.errors import PresetError
from psa_triton.presets.loading import (
    DENSE,
    NamedAttention,
    PresetsFile,
    load_preset,
    load_presets_file,
    parse_presets,
    resolve,
    shipped_presets,
)
from psa_triton.presets.schema import DensePreset, ModelSection, PsaPreset, VideoScale, presets_json_schema

__all__ = [
    "DENSE",
    "DensePreset",
    "ModelSection",
    "NamedAttention",
    "PresetError",
    "PresetsFile",
    "PsaPreset",
    "VideoScale",
    "load_preset",
    "load_presets_file",
    "parse_presets",
    "presets_json_schema",
    "resolve",
    "shipped_presets",
]
