import time
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from psa_triton.ordering import grid as grid_module
from psa_triton.ordering import grid_order
from psa_triton.ordering.gilbert import gilbert_order
from psa_triton.ordering.grid import tile_order

sizes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))


@pytest.fixture
def cold_cache():
    grid_module._grid_order.cache_clear()


def test_methods_are_the_curve_and_the_tiles():
    grid = (3, 5, 7)
    assert torch.equal(grid_order("Gilbert", grid).permutation, gilbert_order(grid))
    assert torch.equal(grid_order("STA", grid).permutation, tile_order(grid, (2, 8, 8)))
    assert torch.equal(grid_order("STA", grid, tile_size=(1, 2, 3)).permutation, tile_order(grid, (1, 2, 3)))


@pytest.mark.parametrize("method", ["Gilbert", "STA"])
def test_an_order_of_fake_tensors_is_fake_and_not_kept(cold_cache, method):
    for _ in range(2):
        with FakeTensorMode():
            assert grid_order(method, (3, 5, 7)).apply(torch.empty(1, 2, 105, 8)).shape == (1, 2, 105, 8)
        assert type(grid_order(method, (3, 5, 7)).permutation) is torch.Tensor


@pytest.mark.parametrize("grid", [(21, 24, 40), (21, 45, 80)], ids=["20,160 tokens", "75,600 tokens"])
def test_made_in_under_a_second(cold_cache, grid):
    start = time.perf_counter()
    order = grid_order("Gilbert", grid, prefix_tokens=512)
    assert time.perf_counter() - start < 1.0
    assert order.tokens == 512 + grid[0] * grid[1] * grid[2]


def test_cached(cold_cache):
    order = grid_order("Gilbert", (3, 4, 5))
    assert grid_order("Gilbert", (3, 4, 5), tile_size=(1, 1, 1), device=torch.device("cpu")) is order
    assert grid_order("Gilbert", (3, 4, 5), prefix_tokens=1) is not order
    assert grid_order("STA", (3, 4, 5), tile_size=(1, 2, 2)) is not grid_order("STA", (3, 4, 5), tile_size=(2, 2, 2))


def test_an_order_made_in_inference_mode_serves_training_too(cold_cache):
    with torch.inference_mode():
        grid_order("Gilbert", (2, 3, 4))
    x = torch.randn(24, 2, requires_grad=True)
    grid_order("Gilbert", (2, 3, 4)).apply(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(24, 2))


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
def test_tiles_by_hand(grid, tile_size, expected):
    assert tile_order(grid, tile_size).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(sizes, sizes)
def test_tiles_match_nested_loops(grid, tile_size):
    index = torch.arange(prod(grid)).view(grid)
    rows = [
        tile.flatten()
        for frames in index.split(tile_size[0], dim=0)
        for band in frames.split(tile_size[1], dim=1)
        for tile in band.split(tile_size[2], dim=2)
    ]
    assert torch.equal(tile_order(grid, tile_size), torch.cat(rows))
