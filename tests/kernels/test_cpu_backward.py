"""Gradients of the CPU implementation against the oracle's autograd in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, assert_gradients_as_good_as_eager, normal_like, oracle_gradients, random_levels, tensors

from psa_triton.kernels import gathered, pyramid_attention
from psa_triton.kernels.gathered.unpool import unpool_gradient
from psa_triton.pyramid import pyramid_layout, write_pyramid

NAMES = ("grad_q", "grad_k", "grad_v")


def gradients(grad_out, q, k, v, levels, *, grad_lse=None, **kwargs):
    """Forward and backward of the CPU implementation."""
    kwargs = dict(scale=q.shape[-1] ** -0.5, is_causal=False) | kwargs
    out, lse = gathered.pyramid_attention(q, k, v, levels, return_lse=True, **kwargs)
    return gathered.pyramid_attention_backward(grad_out, q, k, v, out, lse, levels, grad_lse=grad_lse, **kwargs)


def check(q, k, v, levels, **kwargs):
    grad_out = normal_like(q)
    grads = gradients(grad_out, q, k, v, levels, **kwargs)
    # In float32, weights that come through a rounded log-sum-exp err by more than those of a softmax.
    slack = 2.5 if q.dtype == torch.float32 else 1.6
    assert_gradients_as_good_as_eager(grads, grad_out, q, k, v, levels, slack=slack, **kwargs)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=lambda d: str(d).removeprefix("torch."))
class TestAgainstTheOracle:
    @pytest.mark.parametrize(
        ("queries", "keys", "m", "n"),
        [
            (2, 3, 64, 64),
            (7, 5, 128, 128),
            (64, 64, 64, 64),
            (100, 333, 32, 32),
            (333, 100, 128, 32),
            (257, 257, 128, 64),
            (300, 300, 64, 128),
            (129, 40, 16, 8),
        ],
        ids=lambda x: str(x),
    )
    def test_shapes(self, dtype, is_causal, queries, keys, m, n):
        q, k, v = tensors(2, 4, 2, queries, keys, dtype=dtype)
        levels = random_levels(q, k, m, n) if keys > n else torch.ones(2, 4, 1, 1, dtype=torch.int8)
        check(q, k, v, levels, block_m=m, block_n=n, is_causal=is_causal)

    @pytest.mark.parametrize("among", [(0, 1, 16, 32, 64), (64,), (8, 16)], ids=lambda x: "-".join(map(str, x)))
    def test_levels_coarser_than_8(self, dtype, is_causal, among):
        q, k, v = tensors(queries=200, keys=300, dtype=dtype)
        levels = random_levels(q, k, 64, 64, among=among)
        check(q, k, v, levels, block_m=64, block_n=64, is_causal=is_causal)

    @pytest.mark.parametrize("dim", [24, 96], ids=lambda d: f"dim{d}")
    def test_head_dimensions(self, dtype, is_causal, dim):
        q, k, v = tensors(queries=70, keys=90, dim=dim, dtype=dtype)
        check(q, k, v, random_levels(q, k, 32, 32), block_m=32, block_n=32, is_causal=is_causal)

    def test_gradient_of_the_log_sum_exp(self, dtype, is_causal):
        q, k, v = tensors(1, 4, 2, queries=100, keys=140, dtype=dtype)
        levels = random_levels(q, k, 32, 32)
        grad_lse = normal_like(q[..., 0], seed=2).to(torch.promote_types(dtype, torch.float32))
        check(q, k, v, levels, block_m=32, block_n=32, is_causal=is_causal, grad_lse=grad_lse)

    def test_a_single_key(self, dtype, is_causal):
        q, k, v = tensors(queries=1, keys=1, dtype=dtype)
        grad_out = normal_like(q)
        levels = torch.ones(1, 2, 1, 1, dtype=torch.int8)
        grads = gradients(grad_out, q, k, v, levels, block_m=32, block_n=32, is_causal=is_causal)
        # Its weight is 1 whatever the query and the key: all they get is the rounding of grad_out * (v - out).
        common = (grad_out.double() * v.double()).abs().sum(-1, keepdim=True) * 64**-0.5 * torch.finfo(dtype).eps
        assert (grads[0].abs() <= common * k.abs()).all()
        assert (grads[1].abs() <= common * q.abs()).all()
        torch.testing.assert_close(grads[2], grad_out)

    def test_strided_inputs_give_the_same(self, dtype, is_causal):
        q, k, v = tensors(queries=100, keys=140, dtype=dtype)
        levels = random_levels(q, k, 32, 32)
        grad_out = normal_like(q)
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (grad_out, q, k, v)]
        kwargs = dict(block_m=32, block_n=32, is_causal=is_causal)
        for a, b in zip(
            gradients(*views, levels, **kwargs), gradients(grad_out, q, k, v, levels, **kwargs), strict=True
        ):
            assert torch.equal(a, b)
            assert a.is_contiguous()

    def test_queries_without_a_key_have_and_give_no_gradient(self, dtype, is_causal):
        q, k, v = tensors(queries=96, keys=64, dtype=dtype)
        levels = random_levels(q, k, 32, 32, among=(1, 2, 8))
        levels[:, :, 1] = 0
        kwargs = dict(block_m=32, block_n=32, is_causal=is_causal)
        empty = torch.arange(96).div(32, rounding_mode="floor") == 1
        if is_causal:  # 96 queries, 64 keys: the first 32 queries see nothing, nor do those before a group ends
            empty |= pyramid_attention(q, k, v, levels, return_lse=True, **kwargs)[1][0].isneginf().all(0)
            assert empty[:64].all()
        grad_out = normal_like(q)
        clean = gradients(grad_out, q, k, v, levels, **kwargs)
        grad_out[:, :, empty] = math.nan
        grad_lse = torch.zeros(1, 2, 96, dtype=torch.promote_types(dtype, torch.float32))
        grad_lse[:, :, empty] = math.nan
        grads = gradients(grad_out, q, k, v, levels, grad_lse=grad_lse, **kwargs)
        assert (grads[0][:, :, empty] == 0).all()
        for name, got, want in zip(NAMES, grads, clean, strict=True):
            assert torch.equal(got, want), name


def test_a_broadcast_output_gradient():
    q, k, v = (x.requires_grad_() for x in tensors(queries=50, keys=70, dtype=torch.float64))
    levels = random_levels(q, k, 32, 32, among=(1, 4))
    kwargs = dict(block_m=32, block_n=32)
    expected = oracle_gradients(torch.ones_like(q), *(x.detach() for x in (q, k, v)), levels, **kwargs)
    pyramid_attention(q, k, v, levels, impl="cpu", **kwargs).sum().backward()
    for x, want in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(x.grad, want)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_all_levels_1_is_the_gradient_of_dense_attention(is_causal):
    q, k, v = tensors(queries=77, keys=77, dtype=torch.float64)
    grad_out = normal_like(q)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    dense = F.scaled_dot_product_attention(*inputs, is_causal=is_causal)
    levels = torch.ones(1, 2, 3, 3, dtype=torch.int8)
    grads = gradients(grad_out, q, k, v, levels, block_m=32, block_n=32, is_causal=is_causal)
    for got, want in zip(grads, torch.autograd.grad(dense, inputs, grad_out), strict=True):
        torch.testing.assert_close(got, want)


class _Attention(torch.autograd.Function):
    """The implementation's two halves put together, nothing else in between."""

    @staticmethod
    def forward(ctx, q, k, v, levels, kwargs):
        out, lse = gathered.pyramid_attention(q, k, v, levels, return_lse=True, **kwargs)
        ctx.save_for_backward(q, k, v, out, lse, levels)
        ctx.kwargs = kwargs
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse, levels = ctx.saved_tensors
        grads = gathered.pyramid_attention_backward(
            grad_out, q, k, v, out, lse, levels, grad_lse=grad_lse, **ctx.kwargs
        )
        return *grads, None, None


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_gradcheck(is_causal):
    q, k, v = (
        x.requires_grad_() for x in tensors(heads=2, key_heads=1, queries=9, keys=19, dim=8, dtype=torch.float64)
    )
    levels = torch.tensor([[[[1, 16], [2, 4]], [[8, 0], [16, 2]]]], dtype=torch.int8)
    kwargs = dict(block_m=8, block_n=16, is_causal=is_causal, scale=0.7)
    assert torch.autograd.gradcheck(lambda *x: _Attention.apply(*x, levels, kwargs), (q, k, v))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_run_gives_the_same_bits(dtype):
    q, k, v = tensors(heads=4, key_heads=2, queries=500, keys=500, dtype=dtype)
    levels = random_levels(q, k, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = [gradients(normal_like(q), q, k, v, levels, block_m=32, block_n=32) for _ in range(5)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
class TestNonFinite:
    """Whatever dense attention would leave finite stays the same bits: 100 tokens, one bad element in head 0 of 2."""

    def both(self, name, value, token, is_causal, levels=None):
        levels = torch.ones(1, 2, 4, 4, dtype=torch.int8) if levels is None else levels
        q, k, v = tensors()
        inputs = dict(grad_out=normal_like(q), q=q, k=k, v=v)
        kwargs = dict(levels=levels, block_m=32, block_n=32, is_causal=is_causal)
        clean = gradients(**inputs, **kwargs)
        inputs[name][0, 0, token, 3] = value
        return clean, gradients(**inputs, **kwargs)

    @pytest.mark.parametrize("name", ["grad_out", "q", "k", "v"])
    def test_the_other_head_is_untouched(self, value, name):
        for clean, got in zip(*self.both(name, value, 50, is_causal=False), strict=True):
            assert torch.equal(got[:, 1], clean[:, 1])

    @pytest.mark.parametrize("name", ["grad_out", "q"])
    def test_a_query_spoils_itself_and_the_keys_that_it_sees(self, value, name):
        clean, got = self.both(name, value, 50, is_causal=True)
        others = torch.arange(100) != 50
        assert not got[0][0, 0, 50].isfinite().any()
        assert torch.equal(got[0][0, 0, others], clean[0][0, 0, others])
        assert not got[1][0, 0, :51].isfinite().any()
        for i in (1, 2):
            assert torch.equal(got[i][0, 0, 51:], clean[i][0, 0, 51:])

    def test_a_query_spoils_no_key_of_a_block_that_it_does_not_read(self, value):
        levels = torch.ones(1, 2, 4, 4, dtype=torch.int8)
        levels[:, :, 1, 2] = 0
        clean, got = self.both("grad_out", value, 50, is_causal=False, levels=levels)
        for i in (1, 2):
            assert torch.equal(got[i][0, 0, 64:96], clean[i][0, 0, 64:96])
            assert not got[i][0, 0, :64].isfinite().all()

    @pytest.mark.parametrize("name", ["k", "v"])
    def test_a_key_or_value_spoils_no_query_before_it(self, value, name):
        clean, got = self.both(name, value, 50, is_causal=True)
        assert torch.equal(got[0][0, 0, :50], clean[0][0, 0, :50])
        assert not got[0][0, 0, 50:].isfinite().all()
        if name == "v":  # the gradient of values is made of weights and grad_out alone
            assert torch.equal(got[2], clean[2])


class TestUnpoolGradient:
    def test_an_answer_made_by_hand(self):
        # 11 tokens in blocks of 8: at level 4 the groups 0-3, 4-7 and the short 8-10, at level 8 the short 8-10.
        layout = pyramid_layout(11, 8, coarsest=8)
        rows = torch.zeros(layout.rows, 1)
        rows[layout.first_row(4) + 1] = 4.0
        rows[layout.first_row(8) + 1] = 6.0
        rows[5] = 10.0
        expected = [0.0, 0.0, 0.0, 0.0, 1.0, 11.0, 1.0, 1.0, 2.0, 2.0, 2.0]
        torch.testing.assert_close(unpool_gradient(rows, layout)[:, 0], torch.tensor(expected))

    @pytest.mark.parametrize("tokens", [1, 8, 63, 64, 65, 131], ids=lambda n: f"tokens{n}")
    @pytest.mark.parametrize(("block_n", "coarsest"), [(8, 8), (64, 8), (64, 64)], ids=lambda x: str(x))
    def test_is_the_adjoint_of_write_pyramid(self, tokens, block_n, coarsest):
        layout = pyramid_layout(tokens, block_n, coarsest)
        x = normal_like(torch.empty(tokens, 8, dtype=torch.float64))
        rows = torch.full((layout.rows, 8), math.nan, dtype=torch.float64)
        write_pyramid(x, layout, rows)
        direction = normal_like(rows, seed=2)
        forward = (rows * direction).sum()
        torch.testing.assert_close((x * unpool_gradient(direction, layout)).sum(), forward)
