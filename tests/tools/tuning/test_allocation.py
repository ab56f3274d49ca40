"""Points chosen along curves, against every choice there is."""

import random
from itertools import product

import pytest

from psa_triton.tools.tuning.allocation import Cell, make_cells, within_cost, within_error
from psa_triton.tools.tuning.curve import DENSE, Point, lower_hull, refined
from psa_triton.tools.tuning.plan import RunPart

BUDGETS = (0.05, 0.1, 0.2, 0.5)


def curve(*errors):
    """Errors at `BUDGETS`, each at its own cost."""
    return (*(Point(budget, budget, error) for budget, error in zip(BUDGETS, errors, strict=True)), DENSE)


def random_cells(seed, count):
    """Curves of falling error, convex or not, with weights of 1 to 3."""
    draw = random.Random(seed)
    errors = [sorted((draw.uniform(0.01, 0.6) for _ in BUDGETS), reverse=True) for _ in range(count)]
    return [Cell(index, 0, draw.randint(1, 3), curve(*values)) for index, values in enumerate(errors)]


def totals(cells, points):
    """Mean cost and root mean square error."""
    weight = sum(cell.weight for cell in cells)
    cost = sum(cell.weight * point.cost for cell, point in zip(cells, points, strict=True))
    square = sum(cell.weight * point.error**2 for cell, point in zip(cells, points, strict=True))
    return cost / weight, (square / weight) ** 0.5


@pytest.mark.parametrize("seed", range(8))
def test_no_other_choice_of_measured_points_is_better(seed):
    cells = random_cells(seed, 4)
    choices = [totals(cells, points) for points in product(*(cell.measured for cell in cells))]
    for limit in (0.08, 0.15, 0.3, 0.7):
        found = within_cost(cells, limit)
        assert (found.cost, found.error) == pytest.approx(totals(cells, found.points))
        assert found.cost == pytest.approx(limit)
        assert found.error <= min(error for cost, error in choices if cost <= limit) + 1e-9
        back = within_error(cells, found.error)
        assert back.cost == pytest.approx(found.cost)


def test_more_steps_weigh_more():
    same = curve(0.6, 0.4, 0.2, 0.05)
    found = within_cost([Cell(0, 0, 9, same), Cell(0, 1, 1, same)], 0.15)
    assert found.cost == pytest.approx(0.15)
    assert 9 * found.points[0].cost + found.points[1].cost == pytest.approx(1.5)


def test_too_small_a_budget_is_told_with_the_least():
    with pytest.raises(ValueError, match=r"expected a mean density of 0\.050 or more"):
        within_cost(random_cells(0, 2), 0.04)


def test_an_error_of_0_is_dense_and_a_large_one_the_least_budget():
    cells = random_cells(1, 3)
    assert {point.budget for point in within_error(cells, 0.0).points} == {1.0}
    assert {point.budget for point in within_error(cells, 9.0).points} == {0.05}


def test_the_hull_leaves_out_what_is_not_worth_its_cost():
    points = curve(0.5, 0.45, 0.1, 0.2)  # 0.1 saves little, 0.5 is worse than 0.2
    assert [point.budget for point in lower_hull(points)] == [0.05, 0.2, 1.0]


def test_between_measured_points_cost_and_error_follow_a_power():
    fine = refined((Point(0.1, 0.1, 0.4), Point(0.4, 0.4, 0.1), DENSE))
    assert fine[0].budget == 0.1
    assert fine[-2:] == (Point(0.4, 0.4, 0.1), DENSE)
    assert all(point.error * point.budget == pytest.approx(0.04) for point in fine[:-1])


def test_a_layer_that_was_not_measured_is_named():
    parts = [RunPart(0, 2, 1), RunPart(2, 4, 3)]
    measured = {(0, 0): [curve(0.4, 0.3, 0.2, 0.1)], (0, 1): [curve(0.4, 0.3, 0.2, 0.1)]}
    with pytest.raises(ValueError, match="found none of layer 0 in step 3"):
        make_cells(measured, parts)
    measured |= {(1, 0): [curve(0.4, 0.3, 0.2, 0.1), curve(0.2, 0.1, 0.1, 0.1)], (1, 1): [curve(0.4, 0.3, 0.2, 0.1)]}
    cells = make_cells(measured, parts)
    assert [(cell.part, cell.layer, cell.weight) for cell in cells] == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]
    assert cells[2].measured[0].error == pytest.approx(((0.4**2 + 0.2**2) / 2) ** 0.5)
