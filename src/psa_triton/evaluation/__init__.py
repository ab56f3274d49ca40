"""How close videos made with PSA are to dense ones, and at what cost."""

from __future__ import annotations

from psa_triton.evaluation.compare import Candidate, Comparison, compare_attentions, label_attentions
from psa_triton.evaluation.metrics import PSNR_CAP, Fidelity, fidelity
from psa_triton.evaluation.report import sentence, write_comparison

__all__ = [
    "PSNR_CAP",
    "Candidate",
    "Comparison",
    "Fidelity",
    "compare_attentions",
    "fidelity",
    "label_attentions",
    "sentence",
    "write_comparison",
]
