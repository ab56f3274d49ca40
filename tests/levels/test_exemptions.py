"""Prefix, causal frontier and future, by hand and against loops over token pairs."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.blocks import Blocks
from psa_triton.levels import exempt_levels


def test_prefix_by_hand():
    # 9 prefix tokens touch key blocks 0 and 1 of 8, and query block 0 of 16.
    levels = torch.full((1, 1, 3, 4), 8, dtype=torch.int8)
    found = exempt_levels(levels, Blocks(16, 8, 40, 32), prefix_tokens=9)
    assert found[0, 0].tolist() == [[1, 1, 1, 1], [1, 1, 8, 8], [1, 1, 8, 8]]
    assert (levels == 8).all()


def test_first_block_by_hand():
    # Read in full by every query, but where it lies in the future of all: query block 0 sees no key.
    levels = torch.full((1, 1, 3, 2), 8, dtype=torch.int8)
    found = exempt_levels(levels, Blocks(8, 8, 24, 16), keep_first_block=True)
    assert found[0, 0].tolist() == [[1, 8], [1, 8], [1, 8]]
    found = exempt_levels(levels, Blocks(8, 8, 24, 16, is_causal=True), keep_first_block=True)
    assert found[0, 0].tolist() == [[0, 0], [1, 0], [1, 1]]


def test_causal_by_hand():
    # 16 queries stand at the end of 32 keys: block 0 holds positions 16-23, block 1 positions 24-31.
    levels = torch.full((1, 1, 2, 4), 4, dtype=torch.int8)
    found = exempt_levels(levels, Blocks(8, 8, 16, 32, is_causal=True))
    assert found[0, 0].tolist() == [[4, 4, 1, 0], [4, 4, 4, 1]]


def test_queries_that_see_no_key_read_nothing():
    # 24 queries, 8 keys: the first 16 queries come before every key.
    levels = torch.full((1, 1, 3, 1), 2, dtype=torch.int8)
    found = exempt_levels(levels, Blocks(8, 8, 24, 8, is_causal=True), prefix_tokens=8)
    assert found.flatten().tolist() == [0, 0, 1]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([8, 16]),
    st.sampled_from([8, 16]),
    st.integers(0, 80),
    st.booleans(),
)
def test_equals_loops_over_tokens(nq, nk, m, n, prefix, is_causal):
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, math.ceil(nq / m), math.ceil(nk / n))
    levels = torch.tensor([0, 1, 2, 4, 8], dtype=torch.int8)[torch.randint(5, shape, generator=generator)]
    found = exempt_levels(levels, Blocks(m, n, nq, nk, is_causal=is_causal), prefix_tokens=prefix)
    sees = torch.ones(nq, nk, dtype=torch.bool).tril(nk - nq) if is_causal else torch.ones(nq, nk, dtype=torch.bool)
    for i in range(shape[2]):
        for j in range(shape[3]):
            pair = sees[i * m : (i + 1) * m, j * n : (j + 1) * n]
            if not pair.any():
                expected = torch.zeros(2, dtype=torch.int8)
            elif i * m < prefix or j * n < prefix or not pair.all():
                expected = torch.ones(2, dtype=torch.int8)
            else:
                expected = levels[0, :, i, j]
            assert torch.equal(found[0, :, i, j], expected)
