"""Gradients of the GPU kernels, run in Triton's interpreter, against the oracle's autograd in float64."""

import math

import pytest
import torch
from accuracy import (
    DTYPES,
    assert_gradients_as_good_as_eager,
    normal_like,
    oracle,
    oracle_gradients,
    random_levels,
    tensors,
)

pytest.importorskip("triton")

from psa_triton.blocks import Blocks
from psa_triton.kernels import Reading
from psa_triton.kernels.triton import pyramid_attention_backward

WITH_LEVEL_64 = (0, 1, 2, 4, 8, 16, 32, 64)


pytestmark = pytest.mark.usefixtures("bfloat16_is_rounded")


@pytest.fixture(autouse=True)
def poisoned():
    """New tensors are NaN, those of integers full of the largest: what is not written, or read before, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients(
    grad_out,
    q,
    k,
    v,
    levels,
    *,
    block_m,
    block_n,
    grad_lse=None,
    coarsest=None,
    is_causal=False,
    pool_correction="none",
    key_mask=None,
):
    """Of the kernels, from the oracle's results."""
    settings = dict(block_m=block_m, block_n=block_n, pool_correction=pool_correction, key_mask=key_mask)
    out, lse = oracle(q, k, v, levels, is_causal=is_causal, **settings)
    blocks = Blocks.of(q, k, block_m, block_n, is_causal, key_mask)
    reading = Reading(q.shape[-1] ** -0.5, pool_correction, coarsest or min(block_n, 64), "triton")
    return pyramid_attention_backward(
        grad_out, grad_lse, out.to(q.dtype), lse.float(), q, k, v, levels, blocks, reading
    )


def check(q, k, v, levels, *, coarsest=None, **kwargs):
    grad_out = normal_like(q)
    grads = gradients(grad_out, q, k, v, levels, coarsest=coarsest, **kwargs)
    assert all(got.is_contiguous() for got in grads)
    # In float32 the rounding of the log-sum-exp, which eager code does not go through, is as large as all else.
    slack = 3.0 if q.dtype == torch.float32 else 1.6
    assert_gradients_as_good_as_eager(grads, grad_out, q, k, v, levels, slack=slack, **kwargs)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
class TestAgainstTheOracle:
    @pytest.mark.parametrize(
        ("queries", "keys", "m", "n"),
        [
            (20, 35, 64, 64),
            (64, 64, 64, 64),
            (70, 133, 32, 32),
            (133, 70, 128, 32),
            (130, 257, 64, 128),
            (41, 20, 16, 8),
        ],
        ids=lambda x: str(x),
    )
    def test_shapes(self, is_causal, queries, keys, m, n):
        q, k, v = tensors(1, 2, 1, queries, keys, dim=16)
        levels = random_levels(q, k, m, n) if keys > n else torch.ones(1, 2, 1, 1, dtype=torch.int8)
        check(q, k, v, levels, block_m=m, block_n=n, is_causal=is_causal)

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
    def test_dtypes(self, is_causal, dtype):
        q, k, v = tensors(heads=2, key_heads=1, queries=70, keys=133, dim=32, dtype=dtype)
        grad_lse = normal_like(q[..., 0].float(), seed=2).mT.contiguous().mT
        levels = random_levels(q, k, 32, 32)
        check(q, k, v, levels, block_m=32, block_n=32, is_causal=is_causal, grad_lse=grad_lse)

    def test_all_levels(self, is_causal):
        q, k, v = tensors(heads=1, key_heads=1, queries=100, keys=300, dim=16)
        levels = random_levels(q, k, 32, 64, among=WITH_LEVEL_64)
        check(q, k, v, levels, block_m=32, block_n=64, is_causal=is_causal)

    @pytest.mark.parametrize(("group", "batch"), [(1, 2), (3, 1)], ids=["single", "triple"])
    def test_query_heads_that_share_a_key_head(self, is_causal, group, batch):
        q, k, v = tensors(batch, 2 * group, 2, queries=33, keys=40, dim=16)
        levels = random_levels(q, k, 16, 16)
        check(q, k, v, levels, block_m=16, block_n=16, is_causal=is_causal, coarsest=8)


@pytest.mark.parametrize("dim", [24, 64, 80, 96, 128, 256], ids=lambda d: f"dim{d}")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_head_dimensions(dtype, dim):
    q, k, v = tensors(heads=1, key_heads=1, queries=40, keys=50, dim=dim, dtype=dtype)
    levels = random_levels(q, k, 32, 32, among=(1, 2, 8))
    check(q, k, v, levels, block_m=32, block_n=32, is_causal=True)


@pytest.mark.parametrize("coarsest", [1, 2, 16], ids=lambda c: f"coarsest{c}")
def test_levels_that_do_not_come_need_no_pyramid(coarsest):
    q, k, v = tensors(queries=70, keys=100, dim=16)
    levels = random_levels(q, k, 32, 32, among=(0, 1, coarsest))
    check(q, k, v, levels, block_m=32, block_n=32, coarsest=coarsest)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_one_query_and_one_key(dtype):
    q, k, v = tensors(queries=1, keys=1, dim=32, dtype=dtype)
    grad_out = normal_like(q)
    levels = torch.ones(1, 2, 1, 1, dtype=torch.int8)
    grads = gradients(grad_out, q, k, v, levels, block_m=32, block_n=32, is_causal=True)
    # Its weight is 1 whatever the query and the key: all they get is the rounding of the weight and the sums.
    common = (grad_out.double() * v.double()).abs().sum(-1, keepdim=True) * 4e-7
    assert (grads[0].abs() <= common * k.abs()).all()
    assert (grads[1].abs() <= common * q.abs()).all()
    torch.testing.assert_close(grads[2], grad_out)


@pytest.mark.parametrize("layout", ["tokens before heads", "dimensions before tokens", "every second entry"])
def test_strided_inputs_give_the_same(layout):
    def view(x):
        if layout == "tokens before heads":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "dimensions before tokens":
            return x.mT.contiguous().mT
        return x.repeat_interleave(2, -1)[..., ::2]

    q, k, v = tensors(heads=2, key_heads=1, queries=50, keys=70, dim=16)
    levels = random_levels(q, k, 32, 32)
    grad_out = normal_like(q)
    kwargs = dict(block_m=32, block_n=32, is_causal=True, coarsest=8)
    strided = gradients(*map(view, (grad_out, q, k, v)), levels.mT.contiguous().mT, **kwargs)
    for got, want in zip(strided, gradients(grad_out, q, k, v, levels, **kwargs), strict=True):
        assert got.is_contiguous()
        assert torch.equal(got, want)


def test_a_broadcast_output_gradient():
    q, k, v = tensors(queries=50, keys=70, dim=16)
    levels = random_levels(q, k, 32, 32)
    grad_out = torch.ones(()).expand_as(q)
    grads = gradients(grad_out, q, k, v, levels, block_m=32, block_n=32)
    for got, want in zip(grads, oracle_gradients(grad_out, q, k, v, levels, block_m=32, block_n=32), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_queries_that_see_nothing_have_and_give_no_gradient(is_causal):
    q, k, v = tensors(queries=96, keys=64, dim=16)
    levels = random_levels(q, k, 32, 32, among=(1, 2, 8))
    levels[:, :, 1] = 0
    kwargs = dict(block_m=32, block_n=32, is_causal=is_causal)
    empty = oracle(q, k, v, levels, **kwargs)[1].isneginf()
    assert empty[:, :, 32:64].all()
    assert empty[:, :, :32].all() == is_causal  # 96 queries, 64 keys: the first 32 are before the first key
    grad_out = normal_like(q)
    clean = gradients(grad_out, q, k, v, levels, **kwargs)
    assert (clean[0][empty] == 0).all()
    # What reaches them says nothing: lse = -inf makes many a loss's gradient NaN.
    grad_lse = torch.zeros(1, 2, 96).masked_fill(empty, math.nan)
    other = gradients(grad_out + 100.0 * empty[..., None], q, k, v, levels, grad_lse=grad_lse, **kwargs)
    for got, want in zip(other, clean, strict=True):
        assert torch.equal(got, want)


def test_keys_that_nothing_reads_have_no_gradient():
    q, k, v = tensors(queries=40, keys=96, dim=16)
    levels = torch.tensor([1, 0, 4], dtype=torch.int8).expand(1, 2, 2, 3)
    grads = gradients(normal_like(q), q, k, v, levels, block_m=32, block_n=32)
    for got in grads[1:]:
        assert (got[:, :, 32:64] == 0).all()
        assert (got[:, :, :32] != 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_run_gives_the_same_bits(dtype):
    q, k, v = tensors(heads=2, key_heads=1, queries=50, keys=70, dim=16, dtype=dtype)
    levels = random_levels(q, k, 32, 32)
    first, second = (gradients(normal_like(q), q, k, v, levels, block_m=32, block_n=32) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
