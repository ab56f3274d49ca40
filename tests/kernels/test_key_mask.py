"""Keys left out: the definition by brute force, every implementation, forward and backward."""

import math

import pytest
import torch
from accuracy import DTYPES, assert_as_good_as_eager, check, random_levels, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.kernels import pyramid_attention

IMPLS = ["reference", "cpu", "triton"]
FAST = ["cpu", "triton"]
ALL_LEVELS = (0, 1, 2, 4, 8, 16, 32, 64)


def padding(batch, keys):
    """Left, right, in the middle, in a whole block, and here and there: one kind an item, in turn."""
    mask = torch.ones(batch, keys, dtype=torch.bool)
    for b in range(batch):
        if b % 5 == 0:
            mask[b, : keys // 3] = False
        elif b % 5 == 1:
            mask[b, -(keys // 3) :] = False
        elif b % 5 == 2:
            mask[b, keys // 4 : keys // 2] = False
        elif b % 5 == 3:
            mask[b] = torch.rand(keys, generator=torch.Generator().manual_seed(b)) < 0.5
    return mask


def everything_at_once(keys):
    """Padding on both sides, a whole block of 32, and here and there before it."""
    mask = torch.rand(1, keys, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[:, 64:] = True
    mask[:, :5] = mask[:, 64:96] = mask[:, -3:] = False
    return mask


def by_hand(q, k, v, levels, key_mask, m, n, *, is_causal=False, scale=None, pool_correction="none"):
    """The definition, a query and a group at a time, over nothing but the keys that are there."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf)
    for b, h, i in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        query, head = q[b, h, i], h // (q.shape[1] // k.shape[1])
        logits, values = [], []
        for j, level in enumerate(levels[b, h, i // m].tolist()):
            for start in range(j * n, min((j + 1) * n, k.shape[2]), level) if level else ():
                stop = min(start + level, (j + 1) * n, k.shape[2])
                there = [t for t in range(start, stop) if key_mask[b, t]]
                if not there or (is_causal and there[-1] > i + k.shape[2] - q.shape[2]):
                    continue
                keys = k[b, head, there]
                logit = scale * keys.mean(0) @ query + math.log(len(there))
                if pool_correction == "isotropic" and level in (2, 4, 8):
                    logit += scale**2 / 2 * query.square().sum() * keys.var(0, correction=0).mean()
                logits.append(logit)
                values.append(v[b, head, there].mean(0))
        if logits:
            lse[b, h, i] = torch.stack(logits).logsumexp(0)
            out[b, h, i] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out, lse


@pytest.mark.parametrize("impl", IMPLS)
def test_an_answer_made_by_hand(impl):
    # Eight keys in groups of 4, of which 0, 5 and 6 are there: groups {0} and {5, 6}, counts 1 and 2. Key 5 has logit
    # 2 ln 3, so the second group's mean has ln 3: weights 1 and 2 * 3.
    q, k, v = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), math.nan)
    q[..., 0] = 1.0
    k[0, 0, 5, 0] = 2 * math.log(3)
    k[0, 0, 7] = math.inf
    v[0, 0, 0], v[0, 0, 5], v[0, 0, 6] = 7.0, 0.0, 2.0
    key_mask = torch.zeros(1, 8, dtype=torch.bool)
    key_mask[0, [0, 5, 6]] = True
    levels = torch.full((1, 1, 1, 1), 4, dtype=torch.int8)
    kwargs = dict(block_m=8, block_n=8, scale=1.0, impl=impl, return_lse=True)
    out, lse = pyramid_attention(q, k, v, levels, key_mask=key_mask, **kwargs)
    torch.testing.assert_close(out, torch.full_like(out, (7 * 1 + 1 * 6) / 7))
    torch.testing.assert_close(lse, torch.tensor([[[math.log(7)]]]))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_definition_by_brute_force(data):
    m, n = data.draw(st.sampled_from([8, 16])), data.draw(st.sampled_from([8, 16]))
    queries, keys = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    heads, key_heads = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    seed = data.draw(st.integers(0, 99))
    q, k, v = tensors(2, heads, key_heads, queries, keys, dim=8, dtype=torch.float64, seed=seed)
    drawn = st.lists(st.booleans(), min_size=2 * keys, max_size=2 * keys)
    key_mask = torch.tensor(data.draw(drawn)).view(2, keys)
    levels = random_levels(q, k, m, n, among=[x for x in ALL_LEVELS if x <= n], seed=seed)
    kwargs = dict(is_causal=data.draw(st.booleans()))
    kwargs["pool_correction"] = data.draw(st.sampled_from(["none", "isotropic"]))
    expected = by_hand(q, k, v, levels, key_mask, m, n, **kwargs)
    for x in (k, v):
        x.masked_fill_(~key_mask[:, None, :, None], data.draw(st.sampled_from([math.nan, math.inf, 1e30])))
    for impl in ("reference", "cpu"):
        found = pyramid_attention(
            q, k, v, levels, block_m=m, block_n=n, key_mask=key_mask, impl=impl, return_lse=True, **kwargs
        )
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


SLOW = [pytest.param("triton", dtype, marks=pytest.mark.slow) for dtype in DTYPES if dtype != torch.float32]


@pytest.mark.parametrize(
    ("impl", "dtype"),
    [*(("cpu", dtype) for dtype in DTYPES), ("triton", torch.float32), *SLOW],
    ids=lambda x: str(x).removeprefix("torch."),
)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("n", "among", "pool_correction"),
    [(64, ALL_LEVELS, "none"), (32, (0, 1, 2, 4, 8), "isotropic")],
    ids=["coarse", "corrected"],
)
def test_forward_and_backward(bfloat16_is_rounded, impl, dtype, is_causal, n, among, pool_correction):
    # The interpreter takes long: there one item has all kinds of holes.
    key_mask = everything_at_once(101) if impl == "triton" else padding(5, 150)
    q, k, v = tensors(len(key_mask), 2, 1, 20, key_mask.shape[1], dim=16, dtype=dtype)
    levels = random_levels(q, k, 32, n, among=among)
    kwargs = dict(block_m=32, block_n=n, is_causal=is_causal, pool_correction=pool_correction, key_mask=key_mask)
    out, grads = check(impl, q, k, v, levels, **kwargs)
    hidden = ~key_mask[:, None, :, None].expand_as(k)
    assert (grads[1][hidden] == 0).all() and (grads[2][hidden] == 0).all()
    # Whatever stands there: the same bits.
    bad = [q, *(x.masked_fill(hidden, math.nan) for x in (k, v))]
    again, bad_grads = check(impl, *bad, levels, **kwargs)
    assert torch.equal(again, out)
    assert all(torch.equal(got, want) for got, want in zip(bad_grads, grads, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_mask_of_true_changes_no_bit(impl, is_causal):
    q, k, v = (x.requires_grad_() for x in tensors(1, 2, 1, 20, 75, dim=16))
    levels = random_levels(q, k, 32, 32, among=(0, 1, 2, 8, 16))
    kwargs = dict(block_m=32, block_n=32, is_causal=is_causal, impl=impl, pool_correction="isotropic")
    outs = [
        pyramid_attention(q, k, v, levels, key_mask=mask, **kwargs)
        for mask in (None, torch.ones(1, 75, dtype=torch.bool))
    ]
    assert torch.equal(*outs)
    grads = [torch.autograd.grad(out, (q, k, v), torch.ones_like(out)) for out in outs]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_an_item_without_any_key_sees_nothing(impl, is_causal):
    q, k, v = (x.requires_grad_() for x in tensors(2, 1, 1, 20, 24, dim=8))
    key_mask = torch.stack([torch.zeros(24, dtype=torch.bool), torch.ones(24, dtype=torch.bool)])
    levels = random_levels(q, k, 16, 16, among=(1, 2, 8))
    out, lse = pyramid_attention(
        q, k, v, levels, block_m=16, block_n=16, is_causal=is_causal, key_mask=key_mask, impl=impl, return_lse=True
    )
    assert (out[0] == 0).all() and lse[0].isneginf().all() and lse[1].isfinite().any()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all((grad[0] == 0).all() and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("impl", FAST)
def test_long_lists_with_little_left(impl):
    """Steps, or tiles, of which nothing is left."""
    q, k, v = tensors(2, 1, 1, 64, 200, dim=16)
    key_mask = torch.zeros(2, 200, dtype=torch.bool)
    key_mask[0, 151:153], key_mask[1, 10:12], key_mask[1, 190:] = True, True, True
    levels = random_levels(q, k, 64, 32, among=(1, 2, 8))
    for is_causal in (False, True):
        kwargs = dict(block_m=64, block_n=32, is_causal=is_causal, key_mask=key_mask)
        out = pyramid_attention(q, k, v, levels, impl=impl, **kwargs)
        assert_as_good_as_eager(out, q, k, v, levels, **kwargs)
