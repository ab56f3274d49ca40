"""`configs/attention_config.yaml` -> `PSAConfig`: read, check, explain."""

from __future__ import annotations

from psa_triton.presets.errors import PresetError
from psa_triton.presets.loading import PresetsFile, load_preset, load_presets_file, parse_presets, shipped_presets
from psa_triton.presets.schema import DensePreset, ModelSection, PsaPreset, VideoScale, presets_json_schema

__all__ = [
    "DensePreset",
    "ModelSection",
    "PresetError",
    "PresetsFile",
    "PsaPreset",
    "VideoScale",
    "load_preset",
    "load_presets_file",
    "parse_presets",
    "presets_json_schema",
    "shipped_presets",
]
