"""Parts of a run, goals, and the preset that a choice becomes."""

from __future__ import annotations

import pytest

from psa_triton.config import PSAConfig
from psa_triton.tools.tuning import Allocation, Cell, Goal, Point, RunPart, parts_around, parts_of_run, tuned_config
from psa_triton.tools.tuning.curve import DENSE

BASE = PSAConfig(mask_mode="budget", warmup_steps=3)


def test_parts_hold_every_step_after_the_warm_up_once() -> None:
    parts = parts_of_run(12, warmup=5, count=3)
    assert [(part.first, part.stop, part.measured) for part in parts] == [(5, 7, 6), (7, 9, 8), (9, 12, 10)]
    assert [str(part) for part in parts_of_run(3, warmup=1, count=4)] == ["1", "2"]


def test_parts_around_measured_steps_end_halfway() -> None:
    parts = parts_around([4, 6, 11], 12, warmup=3)
    assert [(part.first, part.stop) for part in parts] == [(3, 5), (5, 9), (9, 12)]


@pytest.mark.parametrize("step", [2, 12], ids=["warm-up", "beyond"])
def test_a_saved_step_that_does_not_run_sparse_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"expected denoising steps from 3.* to 11, got {step}"):
        parts_around([step], 12, warmup=3)


def test_a_run_of_nothing_but_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="num_inference_steps: expected more than the 5 warm-up steps"):
        parts_of_run(5, warmup=5, count=2)


def test_each_step_finds_its_own_row() -> None:
    parts = parts_of_run(7, warmup=3, count=4)
    points = tuple(Point(budget, budget, 0.1) for budget in (0.1, 0.2, 0.3, 0.4))
    cells = [Cell(0, part, 1, (point, DENSE)) for part, point in enumerate(points)]
    config = tuned_config(BASE, cells, parts, Allocation(points, 0.25, 0.1), steps=7, words="Mine.")
    assert [config.at(0, step / 7).budget for step in range(7)] == [0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4]
    assert (config.description, config.budget, config.warmup_steps) == ("Mine.", 0.25, 3)


def test_budgets_are_rounded_down() -> None:
    points = (Point(0.12349, 0.1, 0.1), Point(0.3, 0.3, 0.1))
    cells = [Cell(layer, 0, 1, (point, DENSE)) for layer, point in enumerate(points)]
    config = tuned_config(BASE, cells, [RunPart(3, 7, 5)], Allocation(points, 0.1 + 0.2, 0.1), steps=7, words="")
    assert config.budget_table[0].budgets == (0.1234, 0.3)
    assert config.budget == 0.3


def cells() -> list[Cell]:
    return [Cell(0, 0, 1, (Point(0.1, 0.1, 0.4), Point(0.5, 0.5, 0.1), DENSE))]


def test_a_speed_up_counts_the_warm_up() -> None:
    found = Goal(speedup=2).reach(cells(), steps=10, warmup=4)
    assert (4 + 6 * found.cost) / 10 == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        pytest.param({}, "got none", id="none"),
        pytest.param({"budget": 0.2, "error": 0.1}, "got budget and target_error", id="two"),
        pytest.param({"budget": 1.5}, "budget: expected more than 0 and at most 1, got 1.5", id="budget"),
        pytest.param({"speedup": 0.5}, "target_speedup: expected 1 or more", id="speedup"),
        pytest.param({"error": -1}, "target_error: expected 0 or more", id="error"),
    ],
)
def test_wishes_that_make_no_sense(wishes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Goal(**wishes)


def test_wishes_beyond_the_least_budget() -> None:
    with pytest.raises(
        ValueError, match=r"target_speedup: expected 2\.36 or less.* with 4 of 10 steps dense, got 2\.4;"
    ):
        Goal(speedup=2.4).check(steps=10, warmup=4)
    Goal(speedup=2.3).check(steps=10, warmup=4)
    with pytest.raises(ValueError, match=r"budget: expected 0\.04 or more, got 0\.03"):
        Goal(budget=0.03).check(steps=10, warmup=4)
