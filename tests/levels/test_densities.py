"""Density, by hand and by counting the groups of every query."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.blocks import Blocks
from psa_triton.levels import density, exempt_levels, read_density

densities_triton = pytest.importorskip("psa_triton.levels.densities_triton", exc_type=ImportError)


def test_density_by_hand():
    levels = torch.tensor([[1, 2, 0, 4], [8, 0, 0, 64]], dtype=torch.int8).view(1, 2, 1, 4)
    found = density(levels)
    assert found.dtype == torch.float32
    assert found.tolist() == [[(1 + 1 / 2 + 1 / 4) / 4, (1 / 8 + 1 / 64) / 4]]


def test_dense_levels_have_density_one_also_where_queries_see_nothing():
    blocks = Blocks(8, 16, 50, 21, is_causal=True)
    levels = exempt_levels(torch.ones(1, 2, 7, 2, dtype=torch.int8), blocks)
    assert read_density(levels, blocks).tolist() == [[1.0, 1.0]]


def brute_force(levels, m, n, nq, nk, is_causal):
    shares = []
    for i in range(nq):
        newest = i + nk - nq if is_causal else nk - 1
        if newest < 0:
            continue
        read = 0
        for j, level in enumerate(levels[i // m].tolist()):
            start, end = j * n, min((j + 1) * n, nk)
            for group in range(start, end, level) if level else ():
                read += min(group + level, end) - 1 <= newest
        shares.append(read / min(newest + 1, nk))
    return sum(shares) / len(shares)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 16]), st.sampled_from([8, 32]), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_read_density_equals_a_count_over_queries(nq, nk, m, n, is_causal, seed):
    """So does what a GPU runs, here in Triton's interpreter."""
    shape = (1, 2, math.ceil(nq / m), math.ceil(nk / n))
    choices = torch.tensor([level for level in (0, 1, 2, 4, 8, 16, 32) if level <= n], dtype=torch.int8)
    levels = choices[torch.randint(len(choices), shape, generator=torch.Generator().manual_seed(seed))]
    blocks = Blocks(m, n, nq, nk, is_causal=is_causal)
    expected = [brute_force(levels[0, head], m, n, nq, nk, is_causal) for head in range(2)]
    for found in (read_density(levels, blocks), densities_triton.read_density(levels, blocks)):
        assert found.shape == (1, 2) and found.dtype == torch.float32
        assert found[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_levels_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"levels: expected \[\.\.\., 2, 1\]"):
        read_density(torch.ones(1, 1, 1, 1, dtype=torch.int8), Blocks(8, 8, 9, 8))
