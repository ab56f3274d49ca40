"""How close videos made with PSA are to dense ones, at what cost, and what was read: numbers, tables and a report."""

from __future__ import annotations

from psa_triton.tools.evaluation.case import Case, plan_cases, read_finished
from psa_triton.tools.evaluation.ceiling import Ceiling, CeilingKind, choose_ceiling
from psa_triton.tools.evaluation.compare import Candidate, Comparison, compare_attentions, label_attentions
from psa_triton.tools.evaluation.files import expected_room, write_case, write_summary
from psa_triton.tools.evaluation.levels_record import CallSite, LevelMap, LevelRecording, TokenLayout
from psa_triton.tools.evaluation.measures import MEASURES, PSNR_CAP, Fidelity, fidelity
from psa_triton.tools.evaluation.summary import Column, summarise
from psa_triton.tools.evaluation.table import markdown, notes, sentence, table_rows

__all__ = [
    "MEASURES",
    "PSNR_CAP",
    "CallSite",
    "Candidate",
    "Case",
    "Ceiling",
    "CeilingKind",
    "Column",
    "Comparison",
    "Fidelity",
    "LevelMap",
    "LevelRecording",
    "TokenLayout",
    "choose_ceiling",
    "compare_attentions",
    "expected_room",
    "fidelity",
    "label_attentions",
    "markdown",
    "notes",
    "plan_cases",
    "read_finished",
    "sentence",
    "summarise",
    "table_rows",
    "write_case",
    "write_summary",
]
