"""Times of attention on this machine, for the shapes of known models."""

from __future__ import annotations

from psa_triton.bench.measure import Case, Settings, measure_scaling
from psa_triton.bench.shapes import SHAPES, AttentionShape, find_shape
from psa_triton.bench.verdict import Verdict, judge

__all__ = ["SHAPES", "AttentionShape", "Case", "Settings", "Verdict", "find_shape", "judge", "measure_scaling"]
