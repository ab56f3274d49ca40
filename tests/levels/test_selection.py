"""Importance to levels, by hand and against the definition."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.levels import select_levels

SHARES = {1: (0.0, 0.4), 2: (0.4, 0.5), 4: (0.5, 0.6), 8: (0.6, 0.8), 0: (0.8, 1.0)}
MODES = ("topk", "thresholdbound")


def select(rows, ratios, **options):
    return select_levels(torch.tensor(rows)[None, None], ratios, **options)[0, 0].tolist()


TO_64 = {1: (0, 0.25), 16: (0.25, 0.5), 32: (0.5, 0.75), 64: (0.75, 1)}
# A row, what it gets by topk, and by thresholdbound where nothing is full whatever its mass.
BY_HAND = {
    # Ranks 0-3 are level 1, 4 is 2, 5 is 4, 6 and 7 are 8, 8 and 9 skipped; mass before 2 to 6: .36 .51 .64 .75 .84.
    "ten blocks": (
        [0.19, 0.01, 0.17, 0.03, 0.15, 0.05, 0.13, 0.07, 0.11, 0.09],
        *(SHARES, [1, 0, 1, 0, 1, 8, 1, 8, 2, 4], [1, 0, 1, 0, 1, 0, 4, 0, 8, 8]),
    ),
    # Largest first .4 .3 .2 .06 .04, mass before each 0 .4 .7 .9 .96; by rank levels end at 2, 2, 3, 4.
    "five blocks": ([0.06, 0.4, 0.04, 0.3, 0.2], SHARES, [8, 1, 0, 1, 4], [0, 1, 0, 2, 8]),
    # Mass before each: 0 .2 .4 .6 .8; float32 .2 is not a fifth, the boundaries must hold anyway.
    "ties by position, mass that meets a boundary": ([0.2] * 5, SHARES, [1, 1, 4, 8, 0], [1, 1, 2, 8, 0]),
    "no level 1": ([0.1, 0.7, 0.2], {4: (0, 0.9), 0: (0.9, 1)}, [0, 4, 4], [0, 1, 4]),
    "zeros": ([0.0] * 10, SHARES, [1] * 4 + [2, 4, 8, 8, 0, 0], [1] * 10),
    "levels up to 64": ([0.25] * 4, TO_64, [1, 16, 32, 64], [1, 16, 32, 64]),
}


@pytest.mark.parametrize(("row", "ratios", "by_rank", "by_mass"), list(BY_HAND.values()), ids=list(BY_HAND))
def test_by_hand(row, ratios, by_rank, by_mass):
    assert select([row], ratios, mode="topk", min_full_ratio=1.0) == [by_rank], "topk ignores min_full_ratio"
    assert select([row], ratios, mode="thresholdbound", min_full_ratio=0.0) == [by_mass]


@pytest.mark.parametrize(("ratio", "full"), [(0.0, 1), (0.19, 2), (0.2, 3), (0.29, 3), (1.0, 10)])
def test_min_full_ratio_by_hand(ratio, full):
    # One block holds all the mass, so only min_full_ratio keeps others at level 1: floor(10 * ratio) + 1 of them.
    row = [0.0] * 9 + [1.0]
    found = select([row], SHARES, min_full_ratio=ratio)[0]
    assert found.count(1) == full
    assert found[-1] == 1


@given(st.integers(1, 400), st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_topk_counts_are_floors_and_one_block_for_the_finest_share(blocks, percents):
    ends = [*sorted(percents), 100]
    starts = [0, *ends[:-1]]
    ratios = {level: (start / 100, end / 100) for level, start, end in zip((1, 2, 4, 8, 0), starts, ends, strict=True)}
    found = select_levels(torch.full((1, 1, 1, blocks), 1 / blocks), ratios, mode="topk").flatten().tolist()
    reached = [max(math.floor(Fraction(end, 100) * blocks), 1 if end > 0 else 0) for end in ends]
    expected = [end - start for start, end in zip([0, *reached[:-1]], reached, strict=True)]
    assert [found.count(level) for level in ratios] == expected


rows_of_counts = st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any)


@settings(max_examples=200)
@given(rows_of_counts, st.sampled_from(MODES), st.floats(0, 1))
def test_more_important_is_never_coarser(counts, mode, ratio):
    importance = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    found = select_levels(importance[None, None, None], SHARES, mode=mode, min_full_ratio=ratio).flatten().tolist()
    assert set(found) <= set(SHARES)
    coarseness = [level or math.inf for level in found]
    by_importance = sorted(range(len(counts)), key=lambda block: (-counts[block], block))
    ordered = [coarseness[block] for block in by_importance]
    assert ordered == sorted(ordered)
    if mode == "thresholdbound":
        assert found.count(1) >= min(math.floor(ratio * len(counts)) + 1, len(counts))


@settings(max_examples=200)
@given(rows_of_counts)
def test_thresholdbound_is_the_definition(counts):
    importance = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    found = select_levels(importance[None, None, None], SHARES, min_full_ratio=0.0).flatten().tolist()
    before = Fraction(0)
    expected = [0] * len(counts)
    for rank, block in enumerate(sorted(range(len(counts)), key=lambda block: (-counts[block], block))):
        inside = [level for level, (_, high) in SHARES.items() if before < Fraction(round(high * 10), 10)]
        expected[block] = 1 if rank == 0 else (inside or [0])[0]
        before += Fraction(counts[block], sum(counts))
    assert found == expected


BAD_CALLS = {
    "mode": ({"mode": "best"}, ValueError, "mode: expected one of topk, thresholdbound, got 'best'"),
    "gap": ({"mask_ratios": {1: (0, 0.5), 0: (0.6, 1)}}, ValueError, "mask_ratios: level 0"),
    "level 128": (
        {"mask_ratios": {128: (0, 1)}},
        ValueError,
        "mask_ratios: level 128: expected 0 or a power of two up to 64",
    ),
    "ratio": ({"min_full_ratio": 1.5}, ValueError, "min_full_ratio: expected a share from 0 to 1, got 1.5"),
    "nan ratio": ({"min_full_ratio": math.nan}, ValueError, "min_full_ratio: expected a share from 0 to 1, got nan"),
    "integers": ({"importance": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "importance: expected a floating"),
    "rank": ({"importance": torch.ones(2)}, ValueError, r"importance: expected \[..., nq, nk\]"),
}


@pytest.mark.parametrize(("change", "error", "message"), list(BAD_CALLS.values()), ids=list(BAD_CALLS))
def test_bad_calls_are_named(change, error, message):
    with pytest.raises(error, match=message):
        select_levels(**{"importance": torch.ones(1, 1, 2, 2) / 2, "mask_ratios": SHARES, **change})
