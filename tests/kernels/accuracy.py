"""Inputs, the oracle, and what eager code gets: the measure of every implementation."""

import math

import torch

from psa_triton.kernels import pyramid_attention

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


def eager(q, k, v, levels, *, block_m, block_n, is_causal=False):
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
        s = (q @ mean_k.mT) * q.shape[-1] ** -0.5 + count.log().to(q.dtype)
        logits.append(s.masked_fill(~sees, -math.inf))
    return (torch.cat(logits, -1).softmax(-1).nan_to_num(0.0) @ torch.cat(values, 2)).to(q.dtype)


def assert_as_good_as_eager(out, q, k, v, levels, **kwargs):
    expected, _ = oracle(q, k, v, levels, **kwargs)
    bound = (eager(q, k, v, levels, **kwargs).double() - expected).square().mean().sqrt()
    error = (out.double() - expected).square().mean().sqrt()
    # float32 sums in another order than eager code may come out a little above it; so may one rounding of the output.
    assert error <= 1.6 * bound + torch.finfo(q.dtype).eps * expected.square().mean().sqrt() / 4
