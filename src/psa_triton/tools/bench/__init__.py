"""Times of attention on this machine, for the shapes of known models."""

from __future__ import annotations

from psa_triton.tools.bench.measure import Case, Settings, measure_scaling
from psa_triton.tools.bench.verdict import Verdict, judge
from psa_triton.tools.shapes import SHAPES, AttentionShape, find_shape

__all__ = ["SHAPES", "AttentionShape", "Case", "Settings", "Verdict", "find_shape", "judge", "measure_scaling"]
