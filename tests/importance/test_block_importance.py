"""Every estimator against a plain dense computation, and the promises of `block_importance`."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from psa_triton.importance import block_importance, estimation_cost

METHODS = ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative")
LENGTHS = {
    "one": (1, 1),
    "below a block": (11, 7),
    "whole blocks": (128, 192),
    "ragged": (77, 203),
    "more queries": (203, 77),
    "long": (700, 650),
}
lengths = pytest.mark.parametrize(("nq", "nk"), list(LENGTHS.values()), ids=list(LENGTHS))
methods = pytest.mark.parametrize("method", METHODS)
causal = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])


def tokens(heads, count, dim=16, batch=1, seed=0):
    return 2 * torch.randn(batch, heads, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampled_pairs(q, k, m, key_stratum=4):
    """Logits and, for each row and column, its block-defining token, its visibility token and ln of its weight."""
    rows = [min(i + 3, len(q) - 1) for i in range(0, len(q), 4)]
    columns = list(range(0, len(k), key_stratum))
    return q[rows] @ k[columns].T, rows, columns, columns, [0.0] * len(columns)


def antidiagonal_pairs(q, k, m):
    rows, columns = list(range(0, len(q), 8)), list(range(0, len(k), 8))
    logits = torch.zeros(len(rows), len(columns), dtype=q.dtype)
    for t in range(8):
        reversed_rows = [min(i + 7 - t, len(q) - 1) for i in rows]
        forward_columns = [min(j + t, len(k) - 1) for j in columns]
        logits += q[reversed_rows] @ k[forward_columns].T / 8
    weights = [math.log(min(8, len(k) - j) / 8) for j in columns]
    return logits, [min(i + 7, len(q) - 1) for i in rows], columns, columns, weights


def pooled_pairs(q, k, m):
    rows = [min(i + m // 8, len(q)) - 1 for i in range(0, len(q), m // 8)]
    groups = k.split(8)
    starts = list(range(0, len(k), 8))
    ends = [start + len(group) - 1 for start, group in zip(starts, groups, strict=True)]
    weights = [math.log(len(group)) for group in groups]
    return q[rows] @ torch.stack([group.mean(0) for group in groups]).T, rows, starts, ends, weights


PAIRS = {
    "sampled": sampled_pairs,
    "finely_sampled": partial(sampled_pairs, key_stratum=2),
    "antidiagonal": antidiagonal_pairs,
    "pooled": pooled_pairs,
    "representative": pooled_pairs,
}


def reduce_pair(pair, method):
    """One number of the probabilities `[rows, columns]` of a block pair."""
    if method in ("representative", "finely_sampled"):
        return pair.norm()
    return pair.sum() if method == "antidiagonal" else pair.max()


def brute_force(q, k, m, n, method, is_causal, scale):
    """Importance of one head, from a dense score matrix and loops over block pairs."""
    shift = len(k) - len(q)
    logits, query_tokens, key_tokens, needs, weights = PAIRS[method](q, k, m)
    logits = logits * scale + torch.tensor(weights, dtype=q.dtype)
    seen = torch.tensor([[need <= i + shift or not is_causal for need in needs] for i in query_tokens])
    probabilities = logits.masked_fill(~seen, -math.inf).softmax(-1).masked_fill(~seen, 0)
    result = torch.zeros(math.ceil(len(q) / m), math.ceil(len(k) / n), dtype=q.dtype)
    visible = torch.zeros_like(result)
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            visible[i, j] = not is_causal or j * n <= min((i + 1) * m, len(q)) - 1 + shift
            rows = [a for a, token in enumerate(query_tokens) if token // m == i]
            columns = [b for b, token in enumerate(key_tokens) if token // n == j]
            pair = probabilities[rows][:, columns]
            result[i, j] = reduce_pair(pair, method)
    total = result.sum(-1, keepdim=True)
    result = torch.where(total > 0, result, visible)
    return result / result.sum(-1, keepdim=True).clamp(min=1e-300)


@methods
@causal
@lengths
@pytest.mark.parametrize(("m", "n"), [(32, 16), (8, 64)], ids=["m32n16", "m8n64"])
def test_equals_a_dense_computation(method, is_causal, nq, nk, m, n):
    q, k = tokens(4, nq, batch=2, seed=1), tokens(2, nk, batch=2, seed=2)
    found = block_importance(q, k, block_m=m, block_n=n, method=method, is_causal=is_causal, scale=0.3)
    assert found.dtype == torch.float32
    for b in range(2):
        for h in range(4):
            expected = brute_force(q[b, h], k[b, h // 2], m, n, method, is_causal, 0.3)
            torch.testing.assert_close(found[b, h].double(), expected, atol=1e-6, rtol=1e-5)


@methods
@causal
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_low_precision_stays_near_float64(method, is_causal, dtype):
    q, k = tokens(2, 300).to(dtype), tokens(2, 300, seed=5).to(dtype)
    arguments = {"block_m": 32, "block_n": 32, "method": method, "is_causal": is_causal}
    exact = block_importance(q.double(), k.double(), **arguments)
    # A logit of up to 32 is rounded to the type's precision, and so is each product's sum.
    tolerance = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(block_importance(q, k, **arguments), exact, atol=1e-5, rtol=tolerance)


@methods
def test_a_generator_draws_another_sample_and_the_same_each_time(method):
    q, k = tokens(2, 120), tokens(2, 120, seed=6)
    q[0, 0, 3], k[0, 0, 0] = math.nan, math.inf
    before, state = (q.clone(), k.clone()), torch.get_rng_state()
    fixed, first, again = (
        block_importance(q, k, block_m=32, block_n=32, method=method, generator=generator)
        for generator in (None, torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    )
    assert torch.equal(first, again) and torch.equal(fixed, first) == (method == "antidiagonal")
    assert torch.equal(torch.get_rng_state(), state), "the global state is not touched"
    torch.testing.assert_close((q, k), before, equal_nan=True)


@methods
@causal
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf"])
def test_non_finite_query_changes_only_its_block(method, is_causal, bad):
    q, k = tokens(2, 128), tokens(1, 128, seed=8)
    arguments = {"block_m": 32, "block_n": 32, "method": method, "is_causal": is_causal}
    clean = block_importance(q, k, **arguments)
    q[0, 1, 32:64] = bad
    found = block_importance(q, k, **arguments)
    same = torch.ones(2, 4, dtype=torch.bool)
    same[1, 1] = False
    assert torch.equal(found[0][same], clean[0][same])
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 2, 4))


@methods
@causal
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf"])
def test_non_finite_key_ranks_first_where_it_is_seen(method, is_causal, bad):
    q, k = tokens(2, 128), tokens(2, 128, seed=9)
    arguments = {"block_m": 32, "block_n": 32, "method": method, "is_causal": is_causal}
    clean = block_importance(q, k, **arguments)
    k[0, 1, 64, 2] = bad
    found = block_importance(q, k, **arguments)
    assert torch.equal(found[0, 0], clean[0, 0])
    seeing = slice(2, None) if is_causal else slice(None)
    assert (found[0, 1, seeing].argmax(-1) == 2).all()
    assert torch.equal(found[0, 1, :2], clean[0, 1, :2]) or not is_causal
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 2, 4))


@methods
def test_overflowing_products_still_give_rows_that_sum_to_one(method):
    q, k = torch.full((1, 1, 32, 8), 1e30), torch.full((1, 1, 64, 8), 1e30)
    found = block_importance(q, k, block_m=32, block_n=32, method=method)
    torch.testing.assert_close(found, torch.full((1, 1, 1, 2), 0.5))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([8, 16, 32]),
    st.sampled_from([8, 16, 32]),
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_rows_sum_to_one_over_visible_blocks(method, nq, nk, m, n, is_causal, seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found = block_importance(
        tokens(2, nq, dim=8),
        tokens(1, nk, dim=8, seed=1),
        block_m=m,
        block_n=n,
        method=method,
        is_causal=is_causal,
        generator=generator,
    )
    assert found.shape == (1, 2, math.ceil(nq / m), math.ceil(nk / n))
    assert (found >= 0).all()
    for i in range(found.shape[2]):
        newest = min((i + 1) * m, nq) - 1 + nk - nq if is_causal else nk - 1
        blocks = max(0, newest // n + 1)
        assert (found[:, :, i, blocks:] == 0).all()
        expected = torch.full((1, 2), float(blocks > 0))
        torch.testing.assert_close(found[:, :, i].sum(-1), expected)


class LargestResult(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@methods
@causal
def test_no_tensor_is_larger_than_keys_a_megabyte_or_the_scores_of_one_query_block(method, is_causal):
    q = k = tokens(1, 8192, dim=8).float()
    generator = torch.Generator()  # with one, operations are torch's own: what an operator of ours makes is not seen
    with LargestResult() as largest:
        block_importance(q, k, block_m=32, block_n=32, method=method, is_causal=is_causal, generator=generator)
    scores = {"sampled": 8 * 2048, "finely_sampled": 8 * 4096, "antidiagonal": 4 * 1024}.get(method, 8 * 1024)
    assert largest.numel <= max(k.numel(), scores, 2**18)


def test_estimation_cost_is_counted_by_hand():
    assert estimation_cost("sampled", 128, 64) == pytest.approx(1 / 32)  # 1/4 queries * 1/4 keys, half of dense
    assert estimation_cost("finely_sampled", 128, 64) == pytest.approx(1 / 16)  # 1/4 queries * 1/2 keys, half of dense
    assert estimation_cost("antidiagonal", 128, 64) == pytest.approx(1 / 16)  # 1/8 of the products, half of dense
    assert estimation_cost("pooled", 128, 64) == pytest.approx(1 / 256)  # 8/128 queries * 1/8 keys, half of dense
    assert estimation_cost("representative", 128, 64) == estimation_cost("pooled", 128, 64)


BAD_CALLS = {
    "method": (
        {"method": "best"},
        ValueError,
        "method: expected one of sampled, finely_sampled, antidiagonal, pooled, representative, got 'best'",
    ),
    "block_m": ({"block_m": 48}, ValueError, "block_m: expected a power of two of at least 8 tokens, got 48"),
    "block_n small": ({"block_n": 4}, ValueError, "block_n: expected a power of two of at least 8 tokens, got 4"),
    "block_n float": ({"block_n": 32.0}, TypeError, "block_n: expected an int, got float"),
    "scale": ({"scale": math.inf}, ValueError, "scale: expected a finite number, or None .*, got inf"),
    "rank": ({"q": torch.zeros(2, 8, 8)}, ValueError, "q: expected 4 dimensions"),  # and what test_as_sdpa.py has
}


@pytest.mark.parametrize(("change", "error", "message"), list(BAD_CALLS.values()), ids=list(BAD_CALLS))
def test_bad_calls_are_named(change, error, message):
    good = {"q": torch.zeros(1, 4, 8, 8), "k": torch.zeros(1, 2, 8, 8), "block_m": 32, "block_n": 32}
    with pytest.raises(error, match=message):
        block_importance(**{**good, **change})
