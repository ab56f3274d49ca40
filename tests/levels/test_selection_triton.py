"""The GPU kernel, interpreted, against the torch code: the same levels, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.levels import select_levels

pytest.importorskip("triton")

SHARES = {
    "five levels": {1: (0.0, 0.4), 2: (0.4, 0.5), 4: (0.5, 0.6), 8: (0.6, 0.8), 0: (0.8, 1.0)},
    "empty shares": {1: (0.0, 0.0), 2: (0.0, 0.3), 4: (0.3, 0.3), 64: (0.3, 1.0)},
    "one level": {4: (0.0, 1.0)},
}
MODES = ("topk", "thresholdbound")
modes = pytest.mark.parametrize("mode", MODES)


def assert_same(importance, ratios=SHARES["five levels"], **options):
    found, expected = (select_levels(importance, ratios, impl=impl, **options) for impl in ("triton", "reference"))
    assert found.dtype == torch.int8
    assert torch.equal(found, expected)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).softmax(-1)


@modes
@pytest.mark.parametrize("ratios", list(SHARES.values()), ids=list(SHARES))
def test_equals_torch(mode, ratios):
    assert_same(rows(1, 2, 3, 21), ratios, mode=mode)


@modes
@pytest.mark.parametrize("blocks", [1, 2, 16, 17, 300])
def test_any_number_of_blocks(mode, blocks):
    assert_same(rows(1, 1, 2, blocks), mode=mode)


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_importance_has_many_ties(mode, dtype):
    assert_same(rows(1, 1, 3, 60).to(dtype), mode=mode)


@modes
def test_ties_zeros_of_both_signs_and_tiny_numbers(mode):
    row = torch.tensor([0.0, 0.25, -0.0, 0.25, 1e-42, 0.25, 0.0, 3e-45, 0.25, -0.0])
    assert_same(torch.stack([row, torch.zeros(10), row.flip(0)])[None], mode=mode)


@modes
def test_strided_importance(mode):
    assert_same(rows(2, 3, 5, 9).transpose(1, 2), mode=mode)


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


def test_the_whole_result_is_written():
    importance = torch.tensor([[[0.1, 0.3, 0.2, 0.0, 0.4], [0.2] * 5]])
    torch.use_deterministic_algorithms(True)  # fills new tensors
    try:
        levels = select_levels(importance, SHARES["five levels"], mode="topk", impl="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    # Levels end before ranks 2, 2, 3, 4 and 5.
    assert levels.tolist() == [[[8, 1, 4, 0, 1], [1, 1, 4, 8, 0]]]


@modes
def test_rows_that_do_not_fit_registers_take_the_torch_code(mode):
    assert_same(rows(1, 1, 2, 4097), mode=mode)


@modes
def test_float64_takes_the_torch_code(mode):
    assert_same(rows(1, 1, 2, 9).double(), mode=mode)
