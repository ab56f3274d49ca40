"""Density, by hand and by counting the groups of every query."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.blocks import Blocks
from psa_triton.levels import density, read_density

densities_triton = pytest.importorskip("psa_triton.levels.densities_triton", exc_type=ImportError)
BOTH = read_density, densities_triton.read_density


def test_a_level_coarser_than_all_keys_of_the_only_block():
    keep = torch.arange(20)[None] < 10
    assert density(torch.full((1, 1, 1, 1), 64, dtype=torch.int8), keep).item() == pytest.approx(1 / 10)


def test_density_by_hand():
    levels = torch.tensor([[1, 2, 0, 4], [8, 0, 0, 64]], dtype=torch.int8).view(1, 2, 1, 4)
    found = density(levels)
    assert found.dtype == torch.float32
    assert found.tolist() == [[(1 + 1 / 2 + 1 / 4) / 4, (1 / 8 + 1 / 64) / 4]]


@settings(max_examples=80, deadline=None)
@given(
    nq=st.integers(1, 60),
    nk=st.integers(1, 70),
    m=st.sampled_from([8, 16]),
    n=st.sampled_from([8, 32]),
    is_causal=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_read_density_equals_a_count_over_queries(nq, nk, m, n, is_causal, masked, seed):
    """Without a key mask so does what a GPU runs, here in Triton's interpreter."""
    generator = torch.Generator().manual_seed(seed)
    among = torch.tensor([0, 1, 2, 4, 8, 16, 32][: 5 if n == 8 else 7], dtype=torch.int8)
    levels = among[torch.randint(len(among), (2, 1, -(-nq // m), -(-nk // n)), generator=generator)]
    keep = torch.rand(2, nk, generator=generator) < (0.6 if masked else 1)
    blocks = Blocks(m, n, nq, nk, is_causal=is_causal, key_mask=keep if masked else None)
    found = [read_density(levels, blocks)] if masked else [f(levels, blocks) for f in BOTH]
    for b in range(2):
        shares = []
        for i in range(nq):
            limit = i + nk - nq if is_causal else nk - 1
            read = 0
            for j, level in enumerate(levels[b, 0, i // m].tolist()):
                for start in range(j * n, min((j + 1) * n, nk), level) if level else ():
                    there = [t for t in range(start, min(start + level, nk)) if keep[b, t]]
                    read += bool(there) and there[-1] <= limit
            if kept := int(keep[b, : max(limit + 1, 0)].sum()):
                shares.append(read / kept)
        expected = sum(shares) / len(shares) if shares else 0.0
        assert [x[b].item() for x in found] == [pytest.approx(expected, rel=1e-6)] * len(found)


def test_levels_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"levels: expected \[\.\.\., 2, 1\]"):
        read_density(torch.ones(1, 1, 1, 1, dtype=torch.int8), Blocks(8, 8, 9, 8))
