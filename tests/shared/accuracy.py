"""Inputs, the oracle, and what eager code gets: the measure of every implementation."""

import math

import torch

from psa_triton.kernels import pyramid_attention, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tensors(batch=1, heads=2, key_heads=2, queries=100, keys=100, dim=64, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(h, n):
        return torch.randn(batch, h, n, dim, dtype=torch.float64, generator=generator).to(dtype)

    return normal(heads, queries), normal(key_heads, keys), normal(key_heads, keys)


def random_levels(q, k, m, n, among=(0, 1, 2, 4, 8), seed=0):
    shape = (q.shape[0], q.shape[1], -(-q.shape[2] // m), -(-k.shape[2] // n))
    picked = torch.randint(0, len(among), shape, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(among, dtype=torch.int8)[picked]


def oracle(q, k, v, levels, **kwargs):
    return pyramid_attention(q.double(), k.double(), v.double(), levels, impl="reference", return_lse=True, **kwargs)


def corrected(logits, q, k, keep, level, pool_correction):
    """Logits of a level with the pooled-logit correction, each step rounded to the dtype of q."""
    if pool_correction == "none" or level not in (2, 4, 8):
        return logits
    spread = reference.spread(k, keep, level)
    return logits + q.square().sum(-1, keepdim=True) / (2 * q.shape[-1]) * spread[:, :, None]


def eager_logits(q, k, v, levels, *, block_m, block_n, is_causal=False, pool_correction="none", key_mask=None):
    """Logits of all groups, -inf where they are not seen, and the groups' values; each step rounded to q's dtype."""
    queries, tokens, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    keep = torch.ones(len(k), tokens, dtype=torch.bool) if key_mask is None else key_mask
    k, v = (x.masked_fill(~keep[:, None, :, None], 0.0).repeat_interleave(group, 1) for x in (k, v))
    limit = torch.arange(queries)[:, None] + tokens - queries if is_causal else tokens
    logits, values = [], []
    for level in sorted(set(levels.flatten().tolist()) - {0}):
        mean_k, count, last = reference.pool(k, keep, level)
        values.append(reference.pool(v, keep, level)[0])
        sees = (levels == level).repeat_interleave(block_m, 2)[:, :, :queries]
        sees = sees.repeat_interleave(block_n // level, 3)[..., : count.shape[1]]
        sees = sees & (count > 0)[:, None, None] & (last[:, None, None] <= limit)
        s = corrected((q @ mean_k.mT) * q.shape[-1] ** -0.5, q, k, keep, level, pool_correction)
        logits.append((s + count.clamp(min=1).log().to(q.dtype)[:, None, None]).masked_fill(~sees, -math.inf))
    return torch.cat(logits, -1), torch.cat(values, 2)


def eager(q, k, v, levels, **kwargs):
    """The same mathematics, each step rounded to the dtype of q: what anyone would write down first."""
    logits, values = eager_logits(q, k, v, levels, **kwargs)
    return (logits.softmax(-1).nan_to_num(0.0) @ values).to(q.dtype)


def assert_as_good_as_eager(out, q, k, v, levels, **kwargs):
    expected, _ = oracle(q, k, v, levels, **kwargs)
    if q.dtype == torch.float64:  # the oracle's own dtype: the two differ by rounding alone
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
        return
    bound = (eager(q, k, v, levels, **kwargs).double() - expected).square().mean().sqrt()
    error = (out.double() - expected).square().mean().sqrt()
    # float32 sums in another order than eager code may come out a little above it; so may one rounding of the output.
    assert error <= 1.6 * bound + torch.finfo(q.dtype).eps * expected.square().mean().sqrt() / 4


def normal_like(x, seed=1):
    return torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(x.dtype)


def oracle_gradients(grad_out, q, k, v, levels, *, grad_lse=None, **kwargs):
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = pyramid_attention(*inputs, levels, impl="reference", return_lse=True, **kwargs)
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse.double()
    return torch.autograd.grad((out, lse), inputs, (grad_out.double(), grad_lse))


def eager_gradients(grad_out, q, k, v, levels, *, grad_lse=None, **kwargs):
    """Autograd through the same mathematics, each step rounded to the dtype of q."""
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    logits, values = eager_logits(*inputs, levels, **kwargs)
    empty = (logits == -math.inf).all(-1, keepdim=True)
    logits = logits.masked_fill(empty, 0.0)
    out = logits.softmax(-1).masked_fill(empty, 0.0) @ values
    lse = logits.logsumexp(-1).masked_fill(empty[..., 0], 0.0)
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse.to(lse.dtype)
    return torch.autograd.grad((out, lse), inputs, (grad_out, grad_lse))


def assert_gradients_as_good_as_eager(grads, grad_out, q, k, v, levels, *, slack=1.6, **kwargs):
    """Assert that gradients are as close to the oracle's as those of eager code, up to a factor of `slack`."""
    expected = oracle_gradients(grad_out, q, k, v, levels, **kwargs)
    if q.dtype == torch.float64:
        torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-13)
        return
    eager = eager_gradients(grad_out, q, k, v, levels, **kwargs)
    for name, got, want, plain in zip("qkv", grads, expected, eager, strict=True):
        assert got.dtype == q.dtype
        error, bound = ((x.double() - want).square().mean().sqrt() for x in (got, plain))
        # As in the forward's bound: float32 sums in another order, and one rounding of the result.
        rounding = torch.finfo(q.dtype).eps * want.square().mean().sqrt() / 4
        assert error <= slack * bound + rounding, f"grad_{name}: error {error:.2e}, eager {bound:.2e}"


def check(impl, q, k, v, levels, **kwargs):
    """Assert that output and gradients, those of the log-sum-exp too, are as good as eager code's, and give them."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = pyramid_attention(*inputs, levels, impl=impl, return_lse=True, **kwargs)
    assert_as_good_as_eager(out.detach(), q, k, v, levels, **kwargs)
    grad_out, grad_lse = normal_like(out), torch.where(lse.isfinite(), normal_like(lse, seed=2), 0.0)
    grads = torch.autograd.grad((out, lse), inputs, (grad_out, grad_lse))
    assert all(grad.is_contiguous() for grad in grads)
    # In float32 the rounding of the log-sum-exp, which eager code does not go through, is as large as all else.
    slack = 3.0 if q.dtype == torch.float32 else 1.6
    assert_gradients_as_good_as_eager(grads, grad_out, q, k, v, levels, slack=slack, grad_lse=grad_lse, **kwargs)
    return out.detach(), grads
