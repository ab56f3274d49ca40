"""Queries and keys in 8 bits: every implementation against the definition, and that against exact products."""

import pytest
import torch
from accuracy import oracle, random_levels, tensors

from psa_triton import PSAConfig, psa_attention
from psa_triton.kernels import pyramid_attention
from psa_triton.kernels.int8 import rounded
from psa_triton.kernels.mean_key import mean_key

IMPLS = ["reference", "cpu", "torch", "triton"]
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "masked": {"key_mask": (torch.arange(200) % 5 != 3)[None]},
    "corrected, scaled": {"pool_correction": "isotropic", "scale": -0.3},
}


def inputs(dtype=torch.float32):
    """Keys far from the origin, as those of trained models are: their mean is larger than what sets them apart."""
    q, k, v = tensors(heads=2, key_heads=1, queries=150, keys=200, dtype=torch.float64)
    k = k + 6 * torch.randn(1, 1, 1, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    return q, k, v, random_levels(q, k, 64, 64, among=(0, 1, 1, 2, 4, 8))


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def test_rows_are_rounded_to_steps_of_their_own():
    x = torch.tensor([[127.0, 1.4, -0.5, 1.5], [0.254, 0.0033, 0.0, -0.254], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[127.0, 1.0, 0.0, 2.0], [0.254, 0.004, 0.0, -0.254], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded(x), expected)
    assert rounded(torch.tensor([[1.0, torch.inf], [1.0, torch.nan], [1e-35, 0.0]])).isnan().tolist() == [
        [True, True],
        [True, True],
        [False, False],
    ]


def test_the_mean_key_is_that_of_what_is_there_and_finite():
    k = torch.tensor([[1.0, 2.0], [3.0, torch.inf], [torch.nan, torch.nan]])[None, None]
    keep = torch.tensor([[True, True, False]])
    assert mean_key(k, keep).flatten().tolist() == [2.0, 0.0]
    assert mean_key(k[:, :, :1], None).flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("impl", IMPLS)
def test_error_is_small_and_that_of_the_definition(impl, case):
    q, k, v, levels = inputs()
    how = {"block_m": 64, "block_n": 64, **CASES[case]}
    exact, exact_lse = oracle(q, k, v, levels, **how)
    out, lse = pyramid_attention(q, k, v, levels, qk_dtype="int8", impl=impl, return_lse=True, **how)
    assert 1e-4 < distance(out, exact) < 0.015
    torch.testing.assert_close(lse.double(), exact_lse, atol=0.03, rtol=0)
    defined, defined_lse = oracle(q, k, v, levels, qk_dtype="int8", **how)
    assert distance(out, defined) < 1e-4  # less than a step of one key
    torch.testing.assert_close(lse.double(), defined_lse, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_adds_little_to_the_error_of_narrow_types(impl, dtype):
    q, k, v, levels = inputs(dtype)
    exact, _ = oracle(q, k, v, levels, block_m=64, block_n=64)
    plain, rough = (
        distance(pyramid_attention(q, k, v, levels, block_m=64, block_n=64, qk_dtype=name, impl=impl), exact)
        for name in ("auto", "int8")
    )
    assert rough < plain + 0.012


def test_without_the_mean_errors_would_be_far_larger():
    q, k, _, _ = inputs(torch.float64)
    mean = mean_key(k, None)
    smooth = rounded(q) @ rounded(k - mean).mT + q @ mean.mT
    assert distance(smooth, q @ k.mT) < 0.3 * distance(rounded(q) @ rounded(k).mT, q @ k.mT)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_finite_spoils_those_that_read_it(impl):
    q, k, v, levels = inputs()
    levels.fill_(1)
    levels[:, :, 0, 1] = 0
    k[:, :, 70, 3], q[:, :, 140, 5] = torch.nan, torch.inf
    out = pyramid_attention(q, k, v, levels, block_m=64, block_n=64, qk_dtype="int8", impl=impl)
    spoiled = torch.zeros(150, dtype=torch.bool)
    spoiled[64:] = True
    assert torch.equal(out.isnan().all(-1), spoiled.expand(1, 2, -1))
    assert out[:, :, :64].isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_are_refused(impl):
    q, k, v, _ = inputs()
    config = PSAConfig(qk_dtype="int8")
    with pytest.raises(ValueError, match="qk_dtype: expected auto where a gradient is wanted"):
        psa_attention(q.requires_grad_(), k, v, config, impl=impl)
    with torch.no_grad():
        assert psa_attention(q, k, v, config, impl=impl).isfinite().all()


def test_goes_through_compile_whole():
    q, k, v, _ = inputs()
    config = PSAConfig(qk_dtype="int8", block_m=64)
    with torch.no_grad():
        compiled = torch.compile(psa_attention, fullgraph=True, backend="eager")(q, k, v, config, impl="cpu")
        torch.testing.assert_close(compiled, psa_attention(q, k, v, config, impl="cpu"))
