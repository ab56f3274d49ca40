import torch

from psa_triton.kernels.gathered.schedule import lists, make_schedule, stacked, step_size
from psa_triton.pyramid import pyramid_layout


def test_lists_computed_by_hand():
    # Blocks of 16: a step is 2 rows; 3 blocks at level 1 are rows 0-47 (steps 0-23), level 2 starts at step 24,
    # level 4 at step 36, level 8 at step 42, behind which step 45 holds nothing.
    layout = pyramid_layout(48, 16, 8)
    levels = torch.tensor([[1, 0, 8], [0, 0, 0], [4, 2, 0]], dtype=torch.int8)
    schedule = make_schedule(levels[None], layout)
    assert schedule.size == 2
    assert schedule.start.tolist() == [0, 9, 9, 15]
    assert schedule.steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 44, 36, 37, 28, 29, 30, 31]
    assert stacked(schedule, range(3), rows=36) == [[0, 2]]
    assert lists(schedule, [0, 2], nothing=45).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 44],
        [45, 45, 45, 36, 37, 28, 29, 30, 31],
    ]
    assert stacked(schedule, range(3), rows=35) == [[0], [2]]
    assert lists(schedule, [2], nothing=45).tolist() == [36, 37, 28, 29, 30, 31]


def test_a_level_coarser_than_a_unit_makes_steps_shorter():
    layout = pyramid_layout(40, 16, 16)
    assert step_size(layout) == 1
    schedule = make_schedule(torch.tensor([[[16, 0, 8]]], dtype=torch.int8), layout)
    assert schedule.steps.tolist() == [90, 88]  # the last block has 8 tokens: one group of 8, where two had room
