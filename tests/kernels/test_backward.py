"""Gradients of every implementation, through the operator, against the oracle's autograd in float64."""

import math

import pytest
import torch
from accuracy import DTYPES, assert_gradients_as_good_as_eager, normal_like, oracle_gradients, random_levels, tensors

from psa_triton.blocks import Blocks
from psa_triton.kernels import Reading, pyramid_attention
from psa_triton.kernels.gathered.unpool import unpool_gradient
from psa_triton.pyramid import pyramid_layout, write_pyramid

pytestmark = pytest.mark.usefixtures("bfloat16_is_rounded", "poisoned")
IMPLS = ["cpu", "triton"]
each_impl = pytest.mark.parametrize("impl", IMPLS)
causal = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def gradients(impl, grad_out, q, k, v, levels, *, grad_lse=None, **kwargs):
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = pyramid_attention(*inputs, levels, impl=impl, return_lse=True, **kwargs)
    return torch.autograd.grad((out, lse), inputs, (grad_out, torch.zeros_like(lse) if grad_lse is None else grad_lse))


@pytest.mark.parametrize("coarsest", [1, 2, 16], ids=lambda c: f"coarsest{c}")
def test_levels_that_do_not_come_need_no_pyramid(coarsest):
    triton = pytest.importorskip("psa_triton.kernels.triton")
    q, k, v = tensors(queries=70, keys=100, dim=16)
    levels = random_levels(q, k, 32, 32, among=(0, 1, coarsest))
    kwargs = dict(block_m=32, block_n=32)
    out, lse = pyramid_attention(q, k, v, levels, impl="triton", return_lse=True, **kwargs)
    reading = Reading(16**-0.5, "none", coarsest, "auto", "triton")
    grads = triton.pyramid_attention_backward(
        normal_like(q), None, out, lse, q, k, v, levels, Blocks.of(q, k, 32, 32), reading
    )
    assert_gradients_as_good_as_eager(grads, normal_like(q), q, k, v, levels, slack=3.0, **kwargs)


@dtypes
@each_impl
def test_one_query_and_one_key(impl, dtype):
    q, k, v = tensors(queries=1, keys=1, dim=32, dtype=dtype)
    grad_out, levels = normal_like(q), torch.ones(1, 2, 1, 1, dtype=torch.int8)
    grads = gradients(impl, grad_out, q, k, v, levels, block_m=32, block_n=32, is_causal=True)
    # Its weight is 1 whatever the query and the key: all they get is the rounding of grad_out * (v - out).
    common = (grad_out.double() * v.double()).abs().sum(-1, keepdim=True) * max(4e-7, torch.finfo(dtype).eps)
    assert (grads[0].abs() <= common * k.abs()).all()
    assert (grads[1].abs() <= common * q.abs()).all()
    torch.testing.assert_close(grads[2], grad_out)


@each_impl
@pytest.mark.parametrize("layout", ["tokens before heads", "dimensions before tokens", "every second entry"])
def test_strided_inputs_give_the_same(impl, layout):
    def view(x):
        if layout == "tokens before heads":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "dimensions before tokens":
            return x.mT.contiguous().mT
        return x.repeat_interleave(2, -1)[..., ::2]

    q, k, v = tensors(heads=2, key_heads=1, queries=50, keys=70, dim=16)
    levels, grad_out = random_levels(q, k, 32, 32), normal_like(q)
    kwargs = dict(block_m=32, block_n=32, is_causal=True)
    views, strided_levels = [view(x) for x in (grad_out, q, k, v)], levels.mT.contiguous().mT
    out = pyramid_attention(*views[1:], strided_levels, impl=impl, **kwargs)
    torch.testing.assert_close(out, pyramid_attention(q, k, v, levels, impl=impl, **kwargs))
    assert out.stride() == views[1].stride() or layout != "tokens before heads"
    strided = gradients(impl, *views, strided_levels, **kwargs)
    for got, want in zip(strided, gradients(impl, grad_out, q, k, v, levels, **kwargs), strict=True):
        torch.testing.assert_close(got, want)
        assert got.is_contiguous()


@each_impl
def test_a_broadcast_output_gradient(impl):
    q, k, v = tensors(queries=50, keys=70, dim=16)
    levels, grad_out = random_levels(q, k, 32, 32), torch.ones(()).expand(1, 2, 50, 16)
    expected = oracle_gradients(grad_out, q, k, v, levels, block_m=32, block_n=32)
    for got, want in zip(gradients(impl, grad_out, q, k, v, levels, block_m=32, block_n=32), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@causal
@each_impl
def test_queries_that_see_nothing_have_and_give_no_gradient(impl, is_causal):
    q, k, v = tensors(queries=96, keys=64, dim=16)
    levels = random_levels(q, k, 32, 32, among=(1, 2, 8))
    levels[:, :, 1] = 0
    kwargs = dict(block_m=32, block_n=32, is_causal=is_causal)
    out, lse = pyramid_attention(q, k, v, levels, return_lse=True, impl=impl, **kwargs)
    empty = lse.isneginf()
    assert (out[empty] == 0).all() and out.isfinite().all()
    assert empty[:, :, 32:64].all()
    assert empty[:, :, :32].all() == is_causal  # 96 queries, 64 keys: the first 32 are before the first key
    grad_out = normal_like(q)
    clean = gradients(impl, grad_out, q, k, v, levels, **kwargs)
    assert (clean[0][empty] == 0).all()
    # What reaches them says nothing: lse = -inf makes many a loss's gradient NaN.
    grad_lse = torch.zeros(1, 2, 96).masked_fill(empty, math.nan)
    other = gradients(impl, grad_out + 100.0 * empty[..., None], q, k, v, levels, grad_lse=grad_lse, **kwargs)
    assert all(torch.equal(got, want) for got, want in zip(other, clean, strict=True))


@each_impl
def test_keys_that_nothing_reads_have_no_gradient(impl):
    q, k, v = tensors(queries=40, keys=96, dim=16)
    levels = torch.tensor([1, 0, 4], dtype=torch.int8).expand(1, 2, 2, 3)
    for got in gradients(impl, normal_like(q), q, k, v, levels, block_m=32, block_n=32)[1:]:
        assert (got[:, :, 32:64] == 0).all()
        assert (got[:, :, :32] != 0).all()


@causal
@pytest.mark.parametrize("correction", ["none", "isotropic"])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_gradcheck(impl, correction, is_causal):
    q, k, v = tensors(heads=2, key_heads=1, queries=9, keys=19, dim=8, dtype=torch.float64)
    levels = torch.tensor([[[[1, 16], [2, 4]], [[8, 0], [16, 2]]]], dtype=torch.int8)
    kwargs = dict(block_m=8, block_n=16, is_causal=is_causal, scale=-0.7, pool_correction=correction)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attend = lambda *x: pyramid_attention(*x, levels, impl=impl, return_lse=True, **kwargs)  # noqa: E731
    assert torch.autograd.gradcheck(attend, inputs)


@dtypes
@pytest.mark.parametrize(("impl", "tokens"), [("cpu", 500), ("triton", 60)])
def test_every_run_gives_the_same_bits(impl, tokens, dtype):
    q, k, v = tensors(heads=4, key_heads=2, queries=tokens, keys=tokens, dim=16, dtype=dtype)
    levels, threads = random_levels(q, k, 32, 32), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = [gradients(impl, normal_like(q), q, k, v, levels, block_m=32, block_n=32) for _ in range(3)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for run in runs[1:] for pair in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
class TestNonFinite:
    """Whatever dense attention would leave finite stays the same bits: 100 tokens, one bad element in head 0 of 2."""

    def both(self, name, value, is_causal, levels=None):
        levels = torch.ones(1, 2, 4, 4, dtype=torch.int8) if levels is None else levels
        q, k, v = tensors()
        inputs = dict(grad_out=normal_like(q), q=q, k=k, v=v)
        kwargs = dict(levels=levels, block_m=32, block_n=32, is_causal=is_causal)
        clean = gradients("cpu", **inputs, **kwargs)
        inputs[name][0, 0, 50, 3] = value
        return clean, gradients("cpu", **inputs, **kwargs)

    @pytest.mark.parametrize("name", ["grad_out", "q", "k", "v"])
    def test_the_other_head_is_untouched(self, value, name):
        for clean, got in zip(*self.both(name, value, is_causal=False), strict=True):
            assert torch.equal(got[:, 1], clean[:, 1])

    @pytest.mark.parametrize("name", ["grad_out", "q"])
    def test_a_query_spoils_itself_and_the_keys_that_it_sees(self, value, name):
        clean, got = self.both(name, value, is_causal=True)
        others = torch.arange(100) != 50
        assert not got[0][0, 0, 50].isfinite().any()
        assert torch.equal(got[0][0, 0, others], clean[0][0, 0, others])
        assert not got[1][0, 0, :51].isfinite().any()
        for i in (1, 2):
            assert torch.equal(got[i][0, 0, 51:], clean[i][0, 0, 51:])

    def test_a_query_spoils_no_key_of_a_block_that_it_does_not_read(self, value):
        levels = torch.ones(1, 2, 4, 4, dtype=torch.int8)
        levels[:, :, 1, 2] = 0
        clean, got = self.both("grad_out", value, is_causal=False, levels=levels)
        for i in (1, 2):
            assert torch.equal(got[i][0, 0, 64:96], clean[i][0, 0, 64:96])
            assert not got[i][0, 0, :64].isfinite().all()

    @pytest.mark.parametrize("name", ["k", "v"])
    def test_a_key_or_value_spoils_no_query_before_it(self, value, name):
        clean, got = self.both(name, value, is_causal=True)
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
