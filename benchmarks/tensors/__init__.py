"""Queries, keys and values to measure attention on: of real models over real frames, and some made to break things."""

from __future__ import annotations

from tensors.bundle import AttentionTensors, Grid

__all__ = ["AttentionTensors", "Grid"]
