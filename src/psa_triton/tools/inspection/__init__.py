"""Levels and importance of single attention calls, of a generation or from saved q, k, v: pictures and numbers."""

from __future__ import annotations

from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.inspection.inspect import HeadInspection, Inspection, choose_indexes, inspect_attention
from psa_triton.tools.inspection.numbers import SCHEMA_VERSION, Place, call_data, place_name, place_title, table
from psa_triton.tools.inspection.picture import draw
from psa_triton.tools.inspection.probe import Probe
from psa_triton.tools.inspection.qkv_file import QKVFile, read_grid, read_qkv, write_qkv
from psa_triton.tools.inspection.shares import LevelShare, level_shares, levels_in_use

__all__ = [
    "SCHEMA_VERSION",
    "AttentionInputs",
    "HeadInspection",
    "Inspection",
    "LevelShare",
    "Place",
    "Probe",
    "QKVFile",
    "call_data",
    "choose_indexes",
    "draw",
    "inspect_attention",
    "level_shares",
    "levels_in_use",
    "place_name",
    "place_title",
    "read_grid",
    "read_qkv",
    "table",
    "write_qkv",
]
