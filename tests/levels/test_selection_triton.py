"""The GPU kernel, interpreted, against the torch code: the same levels, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.levels import select_levels

pytest.importorskip("triton")

FIVE = {1: (0.0, 0.4), 2: (0.4, 0.5), 4: (0.5, 0.6), 8: (0.6, 0.8), 0: (0.8, 1.0)}
MODES = ("topk", "thresholdbound")


def assert_same(importance, ratios=FIVE, **options):
    found, expected = (select_levels(importance, ratios, impl=impl, **options) for impl in ("triton", "reference"))
    assert found.dtype == torch.int8
    assert torch.equal(found, expected)


def rows(*shape):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).softmax(-1)


ROW = torch.tensor([0.0, 0.25, -0.0, 0.25, 1e-42, 0.25, 0.0, 3e-45, 0.25, -0.0])
CASES = {
    **{f"{blocks} blocks": (rows(1, 1, 2, blocks), FIVE) for blocks in (1, 2, 16, 17, 300)},
    "empty shares": (rows(1, 2, 3, 21), {1: (0.0, 0.0), 2: (0.0, 0.3), 4: (0.3, 0.3), 64: (0.3, 1.0)}),
    "one level": (rows(1, 2, 3, 21), {4: (0.0, 1.0)}),
    "many ties of bf16": (rows(1, 1, 3, 60).bfloat16(), FIVE),
    "many ties of fp16": (rows(1, 1, 3, 60).half(), FIVE),
    "ties, zeros of both signs, tiny numbers": (torch.stack([ROW, torch.zeros(10), ROW.flip(0)])[None], FIVE),
    "infinities": (torch.tensor([0.0, torch.inf, 0.5, torch.inf, 0.0, 0.5])[None], FIVE),
    "strided": (rows(2, 3, 5, 9).transpose(1, 2), FIVE),
    "too long for registers: the torch code": (rows(1, 1, 2, 4097), FIVE),
    "float64: the torch code": (rows(1, 1, 2, 9).double(), FIVE),
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("importance", "ratios"), CASES.values(), ids=CASES)
def test_equals_torch(importance, ratios, mode):
    assert_same(importance, ratios, mode=mode)


@pytest.mark.parametrize("ratio", [0.0, 0.29, 1.0])
def test_min_full_ratio(ratio):
    assert_same(rows(1, 1, 2, 100), min_full_ratio=ratio)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32)), min_size=1, max_size=16),
    st.sampled_from(MODES),
    st.lists(st.integers(0, 100), min_size=4, max_size=4),
    st.floats(0, 1),
)
def test_equals_torch_on_any_row(row, mode, percents, ratio):
    ends = [*sorted(percents), 100]
    ratios = {
        level: (start / 100, end / 100) for level, start, end in zip((1, 2, 8, 16, 0), [0, *ends], ends, strict=False)
    }
    importance = torch.tensor(row)
    assert_same((importance / importance.sum().clamp(min=1e-9))[None, None], ratios, mode=mode, min_full_ratio=ratio)
