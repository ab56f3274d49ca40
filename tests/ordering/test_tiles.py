from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.ordering.grid import tile_order

sizes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize(
    ("grid", "tile_size", "expected"),
    [
        # 0 1 | 2
        # 3 4 | 5: ragged on the right.
        ((1, 2, 3), (1, 2, 2), [0, 1, 3, 4, 2, 5]),
        # Frames 0 1 / 2 3 and 4 5 / 6 7, tiles of both frames and one row.
        ((2, 2, 2), (2, 1, 2), [0, 1, 4, 5, 2, 3, 6, 7]),
        # Ragged in time: two frames, then one.
        ((3, 1, 2), (2, 1, 1), [0, 2, 1, 3, 4, 5]),
        ((2, 3, 4), (1, 1, 1), list(range(24))),
        ((2, 3, 4), (9, 9, 9), list(range(24))),
    ],
    ids=["ragged width", "tiles in time", "ragged time", "tiles of one token", "one tile"],
)
def test_by_hand(grid: tuple[int, int, int], tile_size: tuple[int, int, int], expected: list[int]) -> None:
    assert tile_order(grid, tile_size).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(sizes, sizes)
def test_matches_nested_loops(grid: tuple[int, int, int], tile_size: tuple[int, int, int]) -> None:
    index = torch.arange(prod(grid)).view(grid)
    rows = [
        tile.flatten()
        for frames in index.split(tile_size[0], dim=0)
        for band in frames.split(tile_size[1], dim=1)
        for tile in band.split(tile_size[2], dim=2)
    ]
    assert torch.equal(tile_order(grid, tile_size), torch.cat(rows))
