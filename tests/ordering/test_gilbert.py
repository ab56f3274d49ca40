import itertools
from math import prod

import pytest
import torch

from psa_triton.ordering.gilbert import gilbert_order


def coordinates(order, grid):
    """(t, h, w) of each position: [N, 3]."""
    return torch.stack(torch.unravel_index(order, grid), dim=1)


def assert_walk_through(grid):
    """Every token once, and every step to a direct neighbour."""
    order = gilbert_order(grid)
    assert torch.equal(order.sort().values, torch.arange(prod(grid)))
    steps = coordinates(order, grid).diff(dim=0).abs().sum(dim=1)
    assert (steps == 1).all(), f"{grid}: steps {steps.unique().tolist()}"


def spread(order, grid, window):
    """Mean variance of the coordinates in windows of consecutive tokens."""
    whole = order[: order.numel() // window * window]
    return coordinates(whole, grid).float().unflatten(0, (-1, window)).var(dim=1, correction=0).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ((1, 1, 1), [0]),
        ((1, 1, 4), [0, 1, 2, 3]),
        ((1, 4, 1), [0, 1, 2, 3]),
        ((4, 1, 1), [0, 1, 2, 3]),
        # 0 1 2
        # 3 4 5: the even edge is walked from end to end, by way of the odd one.
        ((1, 2, 3), [0, 1, 2, 5, 4, 3]),
        # One cut in five: down, right, to the second frame, left, up again. Frames 0 1 / 2 3 and 4 5 / 6 7.
        ((2, 2, 2), [0, 2, 3, 1, 5, 7, 6, 4]),
        # An even edge much shorter than an odd one: along the odd one, up to its last column.
        ((1, 2, 5), [0, 5, 6, 1, 2, 7, 8, 3, 4, 9]),
    ],
    ids=str,
)
def test_by_hand(grid, expected):
    assert gilbert_order(grid).tolist() == expected


def test_all_small_boxes_are_walked_in_steps_of_one():
    for grid in itertools.product(range(1, 8), repeat=3):
        assert_walk_through(grid)


@pytest.mark.parametrize(
    "grid",
    [(21, 45, 80), (13, 30, 52), (21, 24, 40), (21, 45, 79), (1, 45, 81), (2, 45, 81), (45, 2, 81), (80, 45, 21)],
    ids=str,
)
def test_video_grids_are_walked_in_steps_of_one(grid):
    assert_walk_through(grid)


@pytest.mark.parametrize("grid", [(8, 16, 16), (13, 30, 52), (21, 45, 80), (4, 45, 81), (9, 15, 15)], ids=str)
def test_windows_of_the_curve_are_compact(grid):
    # A cube of 64 tokens has a variance of 3 * (4² - 1) / 12 = 3.75, one of 8 tokens 0.75; a line of 8 has 5.25.
    order = gilbert_order(grid)
    assert spread(order, grid, 64) < 2 * 3.75
    assert spread(order, grid, 8) < 2 * 0.75
    assert spread(torch.arange(prod(grid)), grid, 8) > 3 * spread(order, grid, 8)
