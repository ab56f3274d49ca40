"""Exempt tokens, causal frontier and future, by hand and against loops over token pairs."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.blocks import Blocks
from psa_triton.exempt import as_ranges
from psa_triton.levels import exempt_levels


def test_exempt_tokens_by_hand():
    # Keys 0 to 8 touch key blocks 0 and 1 of 8, queries 33 and 34 query block 2 of 16.
    levels = torch.full((1, 1, 3, 4), 8, dtype=torch.int8)
    found = exempt_levels(levels, Blocks(16, 8, 40, 32, exempt_queries=((33, 35),), exempt_keys=((0, 9),)))
    assert found[0, 0].tolist() == [[1, 1, 8, 8], [1, 1, 8, 8], [1, 1, 1, 1]]
    assert (levels == 8).all()


def test_first_block_by_hand():
    # Read in full by every query, but where it lies in the future of all: query block 0 sees no key.
    levels = torch.full((1, 1, 3, 2), 8, dtype=torch.int8)
    found = exempt_levels(levels, Blocks(8, 8, 24, 16), keep_first_block=True)
    assert found[0, 0].tolist() == [[1, 8], [1, 8], [1, 8]]
    found = exempt_levels(levels, Blocks(8, 8, 24, 16, is_causal=True), keep_first_block=True)
    assert found[0, 0].tolist() == [[0, 0], [1, 0], [1, 1]]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([8, 16]),
    st.sampled_from([8, 16]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=2),
    st.booleans(),
)
def test_equals_loops_over_tokens(nq, nk, m, n, ranges, is_causal):
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, math.ceil(nq / m), math.ceil(nk / n))
    levels = torch.tensor([0, 1, 2, 4, 8], dtype=torch.int8)[torch.randint(5, shape, generator=generator)]
    queries, keys = (as_ranges("exempt", [(min(a, x), min(b, x)) for a, b in ranges], x) for x in (nq, nk))
    blocks = Blocks(m, n, nq, nk, is_causal=is_causal, exempt_queries=queries, exempt_keys=keys)
    found = exempt_levels(levels, blocks)
    reads, is_read = ({i for pair in side for i in range(*pair)} for side in (queries, keys))
    sees = torch.ones(nq, nk, dtype=torch.bool).tril(nk - nq) if is_causal else torch.ones(nq, nk, dtype=torch.bool)
    for i in range(shape[2]):
        for j in range(shape[3]):
            pair = sees[i * m : (i + 1) * m, j * n : (j + 1) * n]
            if not pair.any():
                expected = torch.zeros(2, dtype=torch.int8)
            elif reads & {*range(i * m, i * m + m)} or is_read & {*range(j * n, j * n + n)} or not pair.all():
                expected = torch.ones(2, dtype=torch.int8)
            else:
                expected = levels[0, :, i, j]
            assert torch.equal(found[0, :, i, j], expected)
