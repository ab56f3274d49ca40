"""The oracle against answers made by hand, and every implementation against the oracle in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, assert_as_good_as_eager, check, oracle, random_levels, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.kernels import pyramid_attention


class TestOracle:
    def test_an_answer_made_by_hand(self):
        # One query over 16 keys in two blocks; block 0 in pairs, block 1 skipped. Keys 0, 1 have logit ln 3 with the
        # query, all others 0, so the first pair weighs 2 * 3 and the other three 2 * 1.
        k = torch.zeros(1, 1, 16, 8)
        k[0, 0, :2, 0] = math.log(3)
        v = torch.zeros(1, 1, 16, 8)
        v[0, 0, 0, 0], v[0, 0, 1, 0], v[0, 0, 2, 1], v[0, 0, 9, 2] = 1.0, 3.0, 1.0, 100.0
        q = torch.zeros(1, 1, 1, 8)
        q[..., 0] = 1.0
        levels = torch.tensor([[[[2, 0]]]], dtype=torch.int8)
        out, lse = pyramid_attention(
            q, k, v, levels, block_m=8, block_n=8, scale=1.0, impl="reference", return_lse=True
        )
        expected = [2.0 * 6 / 12, 0.5 * 2 / 12, 0.0]
        torch.testing.assert_close(out[0, 0, 0, :3], torch.tensor(expected))
        torch.testing.assert_close(lse, torch.tensor([[[math.log(12)]]]))

    @pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
    def test_all_levels_1_is_dense_attention(self, is_causal):
        q, k, v = tensors(queries=77, keys=77, dtype=torch.float64)
        levels = torch.ones(1, 2, 3, 3, dtype=torch.int8)
        out, _ = oracle(q, k, v, levels, block_m=32, block_n=32, is_causal=is_causal)
        torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=is_causal))

    @pytest.mark.parametrize("level", [1, 2, 4, 8, 16, 32, 64])
    def test_equal_keys_weigh_as_much_pooled_as_unpooled(self, level):
        q, _, v = tensors(queries=5, keys=130, dtype=torch.float64)
        k = q[:, :, :1].expand(-1, -1, 130, -1)
        levels = torch.full((1, 2, 1, 3), level, dtype=torch.int8)
        out, lse = oracle(q, k, v, levels, block_m=8, block_n=64)
        torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))
        torch.testing.assert_close(lse, math.log(130) + (q * k[:, :, :1]).sum(-1) * 64**-0.5)


ALL_LEVELS = (0, 1, 2, 4, 8, 16, 32, 64)
SHAPES = [
    *((2, 3, 64, 64), (7, 5, 128, 128), (64, 64, 64, 64), (100, 333, 32, 32), (333, 100, 128, 32)),
    *((257, 257, 128, 64), (300, 300, 64, 128), (129, 40, 16, 8)),
]
# The interpreter takes long.
INTERPRETED = [(20, 35, 64, 64), (70, 133, 32, 32), (133, 70, 128, 32), (130, 257, 64, 128), (41, 20, 16, 8)]
causal = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])


@pytest.mark.usefixtures("bfloat16_is_rounded", "poisoned")
class TestAsGoodAsEager:
    @pytest.mark.parametrize(
        ("is_causal", "correction"), [(False, "isotropic"), (True, "none")], ids=["corrected", "causal"]
    )
    @pytest.mark.parametrize(
        ("impl", "queries", "keys", "m", "n", "dtype"),
        [
            *(("cpu", *shape, dtype) for shape in SHAPES for dtype in (*DTYPES, torch.float64)),
            *(("triton", *shape, torch.float32) for shape in INTERPRETED),
            *(("triton", *INTERPRETED[1], dtype) for dtype in DTYPES if dtype != torch.float32),
        ],
        ids=str,
    )
    def test_shapes(self, impl, queries, keys, m, n, dtype, correction, is_causal):
        sizes, dim = ((2, 4, 2), 64) if impl == "cpu" else ((1, 2, 1), 16)
        q, k, v = tensors(*sizes, queries, keys, dim=dim, dtype=dtype)
        among = [level for level in ALL_LEVELS if level <= n]
        levels = random_levels(q, k, m, n, among) if keys > n else torch.ones(*q.shape[:2], 1, 1, dtype=torch.int8)
        check(impl, q, k, v, levels, block_m=m, block_n=n, is_causal=is_causal, pool_correction=correction)

    @pytest.mark.parametrize(
        ("impl", "dim", "dtype"),
        [
            *(("cpu", dim, dtype) for dim in (8, 24, 96, 256) for dtype in DTYPES),
            *(("triton", dim, torch.float32) for dim in (24, 64, 80, 96, 128, 256)),
            *(("triton", 128, dtype) for dtype in DTYPES[1:]),
        ],
        ids=str,
    )
    def test_head_dimensions(self, impl, dim, dtype):
        q, k, v = tensors(heads=1, key_heads=1, queries=40, keys=50, dim=dim, dtype=dtype)
        levels = random_levels(q, k, 32, 32, among=(1, 2, 8))
        check(impl, q, k, v, levels, block_m=32, block_n=32, is_causal=True)

    @pytest.mark.parametrize("impl", ["cpu", "triton"])
    @pytest.mark.parametrize("among", [(1, 2), (0, 4), (8,), (64,), (8, 16)], ids=lambda x: "-".join(map(str, x)))
    def test_whatever_levels_there_are(self, impl, among):
        q, k, v = tensors(heads=3, key_heads=1, queries=40, keys=200, dim=16)
        levels = random_levels(q, k, 32, 64, among)
        check(impl, q, k, v, levels, block_m=32, block_n=64, is_causal=True, pool_correction="isotropic")


@pytest.mark.parametrize("return_lse", [False, True], ids=["", "lse"])
@pytest.mark.parametrize("impl", ["cpu", "torch"])
def test_what_all_keys_share_costs_no_digits(impl, return_lse):
    """Softmax does not see it, but in bfloat16 group means of 300 are multiples of 2, and logits of thousands of 16."""
    q, k, v = tensors(dtype=torch.bfloat16)
    levels, blocks = random_levels(q, k, 32, 32), {"block_m": 32, "block_n": 32}
    k, q = k + 300, q + 2
    out = pyramid_attention(q, k, v, levels, impl=impl, return_lse=return_lse, **blocks)
    out, lse = out if return_lse else (out, None)
    expected, expected_lse = oracle(q, k, v, levels, **blocks)
    assert (out.double() - expected).norm() < 0.01 * expected.norm()
    if lse is not None:
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-4, atol=1e-4)


@causal
@pytest.mark.parametrize("level", [1, 2, 4, 8, 16, 32, 64], ids=lambda level: f"level{level}")
@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_the_ragged_last_block_where_whole_ones_would_fill_tiles(impl, level, is_causal):
    q, k, v = tensors(heads=1, key_heads=1, queries=8, keys=64 * level - 5, dim=8)
    levels = torch.full((1, 1, 1, level), level, dtype=torch.int8)
    kwargs = dict(block_m=8, block_n=64, is_causal=is_causal)
    found = pyramid_attention(q, k, v, levels, impl=impl, return_lse=True, **kwargs)
    for got, want in zip(found, oracle(q, k, v, levels, **kwargs), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_every_tile_of_a_long_sequence_is_computed_whatever_its_place_in_the_launch():
    q, k, v = tensors(2, 2, 1, queries=1300, keys=40, dim=8)
    levels = random_levels(q, k, 64, 16, among=(1, 2))
    out = pyramid_attention(q, k, v, levels, block_m=64, block_n=16, impl="triton")
    assert_as_good_as_eager(out, q, k, v, levels, block_m=64, block_n=16)


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_agrees_with_the_oracle_whatever_the_shape(impl, data):
    key_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    queries, keys = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    m, n = data.draw(st.sampled_from([8, 32, 64])), data.draw(st.sampled_from([8, 16, 32, 64]))
    among = data.draw(st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64]), min_size=1, max_size=4))
    is_causal, seed = data.draw(st.booleans()), data.draw(st.integers(0, 99))
    q, k, v = tensors(1, key_heads * group, key_heads, queries, keys, dim=8, seed=seed)
    levels = random_levels(q, k, m, n, among=[level for level in among if level <= n] or [1], seed=seed)
    kwargs = dict(block_m=m, block_n=n, is_causal=is_causal)
    out, lse = pyramid_attention(q, k, v, levels, impl=impl, return_lse=True, **kwargs)
    expected, expected_lse = oracle(q, k, v, levels, **kwargs)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
class TestNonFinite:
    def run(self, impl, q, k, v, **more):
        levels = torch.ones(1, 2, 4, 4, dtype=torch.int8)
        return pyramid_attention(q, k, v, levels, block_m=32, block_n=32, impl=impl, **more)

    def test_a_query_spoils_its_own_row_alone(self, impl, value):
        q, k, v = tensors()
        clean = self.run(impl, q, k, v)
        q[0, 1, 40, 3] = value
        out = self.run(impl, q, k, v)
        others = torch.ones(1, 2, 100, dtype=torch.bool)
        others[0, 1, 40] = False
        assert not out[0, 1, 40].isfinite().any()
        assert torch.equal(out[others], clean[others])

    @pytest.mark.parametrize("where", ["k", "v"])
    def test_a_key_or_value_spoils_the_rows_that_see_it(self, impl, value, where):
        q, k, v = tensors()
        clean = self.run(impl, q, k, v, is_causal=True)
        {"k": k, "v": v}[where][0, 0, 50, 1] = value
        out = self.run(impl, q, k, v, is_causal=True)
        torch.testing.assert_close(out[0, 0, :50], clean[0, 0, :50])  # to rounding: another way may mend them
        assert torch.equal(out[0, 1], clean[0, 1])
        dense = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)[0, 0, 50:]
        spoiled = ~dense.isfinite().all(-1)  # not every row: where the logit is -inf the key weighs nothing
        assert spoiled.any()
        assert not out[0, 0, 50:].isfinite().all(-1)[spoiled].any()
        torch.testing.assert_close(out[0, 0, 50:][~spoiled].double(), dense[~spoiled], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "qk_dtype"), [(torch.bfloat16, "auto"), (torch.float32, "int8")], ids=str)
@pytest.mark.parametrize("impl", ["reference", "torch", "cpu"])
def test_a_query_that_reads_nothing_has_no_mass_whatever_it_holds(impl, dtype, qk_dtype):
    q, k, v = (x.to(dtype) for x in tensors(1, 1, 1, 64, 32, dim=16))
    q[0, 0, 3], k = math.inf, k + 1
    q.requires_grad_(qk_dtype == "auto")
    levels = torch.tensor([[[[0], [1]]]], dtype=torch.int8)
    reading = {"block_m": 32, "block_n": 32, "qk_dtype": qk_dtype, "impl": impl, "return_lse": True}
    out, lse = pyramid_attention(q, k, v, levels, **reading)
    assert (lse[:, :, :32] == -math.inf).all() and (out[:, :, :32] == 0).all()
    if q.requires_grad and impl != "reference":
        (grad_q,) = torch.autograd.grad(lse[:, :, :32].sum(), q)
        assert (grad_q == 0).all()


def test_rows_that_wide_loads_cannot_read_are_copied():
    """Heads of 24 in rows of 27: a GPU reads 8 numbers at a time where it can."""
    tight = [x.requires_grad_() for x in tensors(1, 2, 1, 70, 70, dim=24)]
    loose = [torch.nn.functional.pad(x.detach(), (0, 3))[..., :24].requires_grad_() for x in tight]
    levels = random_levels(*tight[:2], 32, 32)
    found = []
    for q, k, v in (tight, loose):
        out = pyramid_attention(q, k, v, levels, block_m=32, block_n=32, impl="triton")
        grad_out = torch.ones(1, 2, 70, 27)[..., :24]
        found.append((out.contiguous(), *torch.autograd.grad(out, (q, k, v), grad_out)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("impl", ["reference", "torch", "cpu"])
def test_blocks_longer_than_a_level_may_be(impl):
    """Levels are 8 bits: as one of them, a block of 256 tokens would be level 0."""
    q, k, v = tensors(1, 1, 1, 40, 300, dim=16)
    levels = torch.tensor([[[[0, 4]]]], dtype=torch.int8)
    out, lse = pyramid_attention(q, k, v, levels, block_m=64, block_n=256, impl=impl, return_lse=True)
    groups = [x[0, 0, 256:].unflatten(0, (11, 4)).mean(1) for x in (k, v)]
    logits = q[0, 0] @ groups[0].T / 4 + math.log(4)
    torch.testing.assert_close(out[0, 0], logits.softmax(-1) @ groups[1])
    torch.testing.assert_close(lse[0, 0], logits.logsumexp(-1))


KEEP = torch.ones(1, 10, dtype=torch.bool)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (dict(q=torch.zeros(2, 10, 8)), ValueError, "q: expected 4 dimensions"),  # and what test_as_sdpa.py has
            (dict(levels=torch.ones(1, 2, 1, 1)), TypeError, "levels: expected int8"),
            (dict(levels=torch.ones(1, 2, 1, 2, dtype=torch.int8)), ValueError, r"levels: expected .* \(1, 2, 2, 2\)"),
            (dict(levels=torch.full((1, 2, 2, 2), 3, dtype=torch.int8)), ValueError, r"levels: .* got also \[3\]"),
            (dict(levels=torch.full((1, 2, 2, 2), 16, dtype=torch.int8)), ValueError, r"got also \[16\]"),
            (dict(levels=torch.full((1, 2, 2, 2), -1, dtype=torch.int8)), ValueError, r"got also \[-1\]"),
            (dict(scale=math.nan), ValueError, "scale: expected a finite number"),
            (dict(block_m=12), ValueError, "block_m: expected a power of two"),
            (dict(block_n=4), ValueError, "block_n: expected a power of two"),
            (dict(pool_correction="exact"), ValueError, "expected one of none, isotropic, got 'exact'"),
            (dict(qk_dtype="int4"), ValueError, "qk_dtype: expected one of auto, int8, got 'int4'"),
            (dict(key_mask=[True] * 10), TypeError, "key_mask: expected a bool tensor or None, got list"),
            (dict(key_mask=torch.ones(1, 10)), TypeError, "key_mask: expected bool, True for keys that are there, got"),
            (dict(key_mask=torch.ones(10).bool()), ValueError, r"expected \[batch, keys\] = \(1, 10\), got \(10,\)"),
            (dict(key_mask=torch.ones(1, 9).bool()), ValueError, r"= \(1, 10\), got \(1, 9\)"),
            (dict(key_mask=KEEP.to("meta")), ValueError, "key_mask: expected the device of k, cpu, got meta"),
            (dict(impl="cuda"), ValueError, "impl: expected 'auto' or one of reference, torch, cpu, triton, got"),
        ],
    )  # fmt: skip
    def test_bad_input_is_named(self, change, error, message):
        good = dict(q=torch.zeros(1, 2, 10, 8), k=torch.zeros(1, 2, 10, 8), v=torch.zeros(1, 2, 10, 8))
        good |= dict(levels=torch.ones(1, 2, 2, 2, dtype=torch.int8), block_m=8, block_n=8)
        with pytest.raises(error, match=message):
            pyramid_attention(**(good | change))
