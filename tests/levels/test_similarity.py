"""Similarity caps, by hand and against loops over token pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.config import SimThresholds
from psa_triton.levels import cap_levels, similarity_caps

THRESHOLDS = SimThresholds()


def signs(pattern):
    """Keys of one channel from a string of + and -: `[1, 1, N, 1]`."""
    return torch.tensor([1.0 if sign == "+" else -1.0 for sign in pattern])[None, None, :, None]


@pytest.mark.parametrize(
    ("pattern", "cap"),
    [
        ("+" * 16, 8),
        ("+-" * 8, 1),  # all three distances are odd, so every pair is opposite
        ("+" * 8 + "-" * 8, 2),  # 14 of 15 neighbours agree: .87; three apart 10 - 3 of 13: .54
        ("+" * 7 + "-" * 7 + "++", 2),  # 13 of 15 agree: .73; three apart 8 of 13: .23
        ("++++---" * 2 + "++", 8),  # period 7: neighbours (11 - 4) / 15 = .47 fail, seven apart all agree
    ],
)
def test_by_hand(pattern, cap):
    assert similarity_caps(signs(pattern), 16, THRESHOLDS).tolist() == [[[cap]]]


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=["nan", "inf"])
def test_non_finite_key_forbids_pooling_of_its_block(bad):
    k = torch.ones(1, 2, 24, 4)
    k[0, 1, 11, 2] = bad  # token 3 of block 1 is in no pair seven apart
    assert similarity_caps(k, 8, THRESHOLDS).tolist() == [[[8, 8, 8], [8, 1, 8]]]


def brute_force(k, block_n, thresholds):
    caps = []
    for block in k.split(block_n):
        cap = 1
        for level, distance, threshold in ((2, 1, thresholds.x2), (4, 3, thresholds.x4), (8, 7, thresholds.x8)):
            pairs = [
                torch.cosine_similarity(block[t], block[t + distance], dim=0) for t in range(len(block) - distance)
            ]
            if pairs and torch.stack(pairs).mean() >= threshold:
                cap = level
        caps.append(cap)
    return caps


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.sampled_from([8, 16, 32]), st.integers(0, 5), st.floats(-0.5, 0.9))
def test_equals_loops_over_pairs(tokens, block_n, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(1, 2, tokens, 8, generator=generator, dtype=torch.float64).cumsum(-2)
    thresholds = SimThresholds(x2=threshold, x4=threshold * 0.9, x8=threshold * 0.7)
    found = similarity_caps(k, block_n, thresholds)
    assert found.dtype == torch.int8
    assert found[0].tolist() == [brute_force(head, block_n, thresholds) for head in k[0]]


def test_long_keys_equal_their_parts():
    k = torch.randn(2, 2, 8 * 150 + 3, 4, generator=torch.Generator().manual_seed(0)).cumsum(-2)
    parts = [similarity_caps(part, 8, THRESHOLDS) for part in k.split(8 * 70, dim=-2)]
    assert torch.equal(similarity_caps(k, 8, THRESHOLDS), torch.cat(parts, dim=-1))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "keys left out"])
@pytest.mark.parametrize(("n", "dim"), [(8, 24), (16, 8), (64, 16)])
def test_gpu_kernel_equals_torch(n, dim, masked):
    pytest.importorskip("triton")
    k = torch.randn(2, 150, 2, dim, generator=torch.Generator().manual_seed(n)).cumsum(1).transpose(1, 2)
    k[0, 1, 40, 3], k[1, 0, 99, 0] = math.nan, math.inf
    key_mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    if masked:
        key_mask[0, 40] = key_mask[1, 99] = True
    found, expected = (similarity_caps(k, n, THRESHOLDS, key_mask, impl=impl) for impl in ("triton", "reference"))
    assert torch.equal(found, expected)
    assert len(expected.unique()) > 1


def test_cap_levels_by_hand():
    levels = torch.tensor([[0, 1, 2, 4, 8, 16, 64]] * 2, dtype=torch.int8).view(1, 2, 1, 7)
    caps = torch.tensor([[4] * 7], dtype=torch.int8)[None]
    assert cap_levels(levels, caps)[0, :, 0].tolist() == [[0, 1, 2, 4, 4, 4, 4]] * 2


def test_cap_levels_reads_the_key_head_of_each_query_head():
    levels = torch.full((1, 4, 3, 2), 8, dtype=torch.int8)
    caps = torch.tensor([[[1, 2], [4, 8]]], dtype=torch.int8)
    found = cap_levels(levels, caps)
    assert found.dtype == torch.int8
    assert found[0, :, 2].tolist() == [[1, 2], [1, 2], [4, 8], [4, 8]]
