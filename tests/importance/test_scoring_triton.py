"""The GPU kernels, interpreted, against the torch code on the same inputs."""

import math

import pytest
import torch

from psa_triton import products
from psa_triton.importance import block_importance

pytest.importorskip("triton")
from psa_triton.importance import scoring_triton

METHODS = ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative")
methods = pytest.mark.parametrize("method", METHODS)
causal = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])


def tokens(heads, count, dim=32, batch=1, seed=0):
    return 2 * torch.randn(batch, heads, count, dim, generator=torch.Generator().manual_seed(seed))


def both(q, k, **arguments):
    """What the kernels and what the torch code compute."""
    arguments = {"block_m": 32, "block_n": 32} | arguments
    seed = arguments.pop("seed", None)
    found, expected = (
        block_importance(
            q, k, impl=impl, generator=None if seed is None else torch.Generator().manual_seed(seed), **arguments
        )
        for impl in ("triton", "reference")
    )
    return found, expected


def assert_same(q, k, **arguments):
    found, expected = both(q, k, **arguments)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def spoilt(bad):
    q, k = tokens(2, 100), tokens(2, 100, seed=6)
    q[0, 0, 20:45, 3], k[0, 1, 64, 2] = bad, bad
    return q, k


def masked():
    """Padding on the left, a block, and here and there, with NaN in it; one key that is there is NaN too."""
    key_mask = torch.rand(2, 130, generator=torch.Generator().manual_seed(8)) < 0.4
    key_mask[0, :40] = key_mask[1, 64:96] = False
    k = tokens(1, 130, 16, batch=2, seed=6).masked_fill(~key_mask[:, None, :, None], math.nan)
    key_mask[1, 100] = True
    return tokens(1, 40, 16, batch=2), k, key_mask


SIZES = {
    "one token": (1, 1, 128, 64, 64),
    "within a block": (5, 100, 64, 128, 80),
    "ragged": (300, 257, 128, 64, 24),
    "tiny query blocks": (77, 257, 8, 64, 16),
    "tiny key blocks": (100, 77, 128, 8, 128),
    "more queries": (203, 77, 32, 32, 64),
}
CASES = {
    name: (tokens(4, nq, dim), tokens(2, nk, dim, seed=1), {"block_m": m, "block_n": n})
    for name, (nq, nk, m, n, dim) in SIZES.items()
}
CASES |= {
    # [B, N, H, D] seen as [B, H, N, D], and channels that are 75 apart.
    "strided": (tokens(90, 4, batch=2).transpose(1, 2), tokens(2, 32, 75, batch=2, seed=3).transpose(2, 3), {}),
    **{f"{bad}": (*spoilt(bad), {}) for bad in (math.nan, math.inf)},
    "keys left out": (*masked()[:2], {"key_mask": masked()[2]}),
    "drawn": (tokens(2, 150), tokens(2, 130, seed=4), {"seed": 5}),
    "products that overflow": (torch.full((1, 1, 32, 16), 1e30), torch.full((1, 1, 64, 16), 1e30), {}),
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case, method):
    """With a causal mask or without, in turn; every number of the result is written."""
    q, k, arguments = CASES[case]
    is_causal = (list(CASES).index(case) + METHODS.index(method)) % 2 == 1
    assert_same(q, k, method=method, is_causal=is_causal, **arguments)


@methods
@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_is_as_near_to_float64_as_torch_is(method, dtype, dim, monkeypatch):
    monkeypatch.setattr(products, "multiplies", lambda dtype: dtype != torch.float16)  # wherever the tests run
    q, k = tokens(2, 130, dim).to(dtype), tokens(1, 130, dim, seed=2).to(dtype)
    found, eager = both(q, k, method=method)
    exact = block_importance(q.double(), k.double(), block_m=32, block_n=32, method=method)
    assert (found - exact).abs().max() <= (eager - exact).abs().max() + 1e-6


@methods
def test_nothing_left_out_gives_the_same_bits_as_no_mask(method):
    q, k = tokens(1, 40, 16), tokens(1, 75, 16, seed=6)
    found = [
        block_importance(q, k, block_m=32, block_n=32, method=method, impl="triton", key_mask=mask)
        for mask in (None, torch.ones(1, 75, dtype=torch.bool))
    ]
    assert torch.equal(*found)


@causal
def test_a_spoiled_block_ranks_first_where_its_rows_are_not_seen(is_causal):
    # Under the causal mask query 69 sees keys 64 to 69, no whole group of 8, but the group is not finite.
    q, k = tokens(1, 70), tokens(1, 72, seed=7)[:, :, :70]
    k[:, :, 64:] = math.nan
    found, expected = both(q, k, method="pooled", is_causal=is_causal)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found[0, 0, 2].argmax() == 2


def test_rows_longer_than_what_is_normalised_at_a_time():
    assert_same(tokens(1, 3, 16), tokens(1, 8 * 1030, 16, seed=8), block_n=8, method="pooled", is_causal=True)


@pytest.mark.parametrize("method", ["sampled", "antidiagonal", "representative"])
def test_a_program_goes_on_with_another_tile(method, monkeypatch):
    monkeypatch.setattr(scoring_triton, "_programs_at_a_time", lambda device: 2)
    assert_same(tokens(3, 600, 16), tokens(1, 300, 16, seed=9), method=method, is_causal=True)


@pytest.mark.parametrize("target", ["sm_90", "sm_120"])
def test_tiles_of_a_gpu_do_not_change_the_result(target, monkeypatch):
    """Also where a block has more rows than the smallest tile."""
    monkeypatch.setattr(scoring_triton, "current_target", lambda device: target)
    q, k = tokens(1, 150, 16).bfloat16(), tokens(1, 300, 16, seed=11).bfloat16()
    settings = dict(block_m=32, block_n=128, method="finely_sampled")
    found = block_importance(q, k, impl="triton", **settings)
    expected = block_importance(q.float(), k.float(), impl="reference", **settings)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_block_that_fits_no_tile_is_an_error():
    q = k = tokens(1, 40)
    with pytest.raises(ValueError, match="block_n: GPU kernels expect blocks that at most 64 rows stand for, got 128"):
        block_importance(q, k, block_m=32, block_n=512, impl="triton")
