"""A budget for each layer and each part of a run, from measured errors: least error for a cost, or least cost."""

from __future__ import annotations

from psa_triton.tools.tuning.allocation import Allocation, Cell, make_cells, one_budget, within_cost, within_error
from psa_triton.tools.tuning.curve import BUDGETS, Curve, Point, root_mean_square
from psa_triton.tools.tuning.goal import Goal
from psa_triton.tools.tuning.measure import measure_curve
from psa_triton.tools.tuning.picture import draw
from psa_triton.tools.tuning.plan import RunPart, parts_around, parts_of_run
from psa_triton.tools.tuning.preset import tuned_config
from psa_triton.tools.tuning.presets_file import check_output, file_with_preset, write_presets

__all__ = [
    "BUDGETS",
    "Allocation",
    "Cell",
    "Curve",
    "Goal",
    "Point",
    "RunPart",
    "check_output",
    "draw",
    "file_with_preset",
    "make_cells",
    "measure_curve",
    "one_budget",
    "parts_around",
    "parts_of_run",
    "root_mean_square",
    "tuned_config",
    "within_cost",
    "within_error",
    "write_presets",
]
