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


def corrected(logits, q, k, level, pool_correction):
    """Logits of a level with the pooled-logit correction, each step rounded to the dtype of q."""
    if pool_correction == "none" or level not in (2, 4, 8):
        return logits
    groups = [k[:, :, i : i + level] for i in range(0, k.shape[2], level)]
    spread = torch.stack([(g - g.mean(2, keepdim=True)).square().mean((2, 3)) for g in groups], -1)
    return logits + q.square().sum(-1, keepdim=True) / (2 * q.shape[-1]) * spread[:, :, None]


def eager(q, k, v, levels, *, block_m, block_n, is_causal=False, pool_correction="none"):
    """The same mathematics, each step rounded to the dtype of q: what anyone would write down first."""
    heads = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
    logits, values = [], []
    for level in sorted(set(levels.flatten().tolist()) - {0}):
        starts = range(0, k.shape[2], level)
        count = torch.tensor([min(level, k.shape[2] - s) for s in starts])
        mean_k = torch.stack([k[:, :, s : s + level].mean(2) for s in starts], 2)
        values.append(torch.stack([v[:, :, s : s + level].mean(2) for s in starts], 2))
        sees = (levels == level).repeat_interleave(block_m, 2)[:, :, : q.shape[2]]
        sees = sees.repeat_interleave(block_n // level, 3)[..., : len(count)]
        if is_causal:
            limit = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
            sees = sees & (torch.tensor(list(starts)) + count - 1 <= limit)
        s = corrected((q @ mean_k.mT) * q.shape[-1] ** -0.5, q, k, level, pool_correction) + count.log().to(q.dtype)
        logits.append(s.masked_fill(~sees, -math.inf))
    return (torch.cat(logits, -1).softmax(-1).nan_to_num(0.0) @ torch.cat(values, 2)).to(q.dtype)


def assert_as_good_as_eager(out, q, k, v, levels, **kwargs):
    expected, _ = oracle(q, k, v, levels, **kwargs)
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


def eager_gradients(
    grad_out, q, k, v, levels, *, block_m, block_n, is_causal=False, pool_correction="none", grad_lse=None
):
    """Autograd through the same mathematics, each step rounded to the dtype of q."""
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    queries, tokens, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    limit = torch.arange(queries)[:, None] + tokens - queries if is_causal else tokens
    keys, values = (x.repeat_interleave(group, 1) for x in inputs[1:])
    logits, means = [], []
    for level in sorted(set(levels.flatten().tolist()) - {0}):
        key_mean, count, last = reference.pool(keys, level)
        sees = (levels == level).repeat_interleave(block_m, 2)[:, :, :queries]
        sees = sees.repeat_interleave(block_n // level, 3)[..., : len(count)] & (last <= limit)
        s = (inputs[0] @ key_mean.mT) * q.shape[-1] ** -0.5
        s = corrected(s, inputs[0], keys, level, pool_correction) + count.log().to(q.dtype)
        logits.append(s.masked_fill(~sees, -math.inf))
        means.append(reference.pool(values, level)[0])
    logits = torch.cat(logits, -1)
    empty = (logits == -math.inf).all(-1, keepdim=True)
    logits = logits.masked_fill(empty, 0.0)
    out = logits.softmax(-1).masked_fill(empty, 0.0) @ torch.cat(means, 2)
    lse = logits.logsumexp(-1).masked_fill(empty[..., 0], 0.0)
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse.to(lse.dtype)
    return torch.autograd.grad((out, lse), inputs, (grad_out, grad_lse))


def assert_gradients_as_good_as_eager(grads, grad_out, q, k, v, levels, *, slack=1.6, **kwargs):
    """Assert that gradients are as close to the oracle's as those of eager code, up to a factor of `slack`."""
    expected = oracle_gradients(grad_out, q, k, v, levels, **kwargs)
    if q.dtype == torch.float64:  # the oracle's own dtype: the two differ by rounding alone
        torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-13)
        return
    eager = eager_gradients(grad_out, q, k, v, levels, **kwargs)
    for name, got, want, plain in zip("qkv", grads, expected, eager, strict=True):
        assert got.dtype == q.dtype
        error, bound = ((x.double() - want).square().mean().sqrt() for x in (got, plain))
        # As in the forward's bound: float32 sums in another order, and one rounding of the result.
        rounding = torch.finfo(q.dtype).eps * want.square().mean().sqrt() / 4
        assert error <= slack * bound + rounding, f"grad_{name}: error {error:.2e}, eager {bound:.2e}"
