"""One mean for a whole block: the level that is as coarse as the block is long, in every implementation."""

from __future__ import annotations

import math

import pytest
import torch
from accuracy import assert_as_good_as_eager, assert_gradients_as_good_as_eager, normal_like, random_levels, tensors

from psa_triton import PSAConfig, pyramid_attention
from psa_triton.attention import sparse_attention

FAST = ["torch", "cpu", "triton"]
BLOCKS = [32, 64]


@pytest.mark.parametrize("n", BLOCKS, ids=lambda n: f"n{n}")
@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_an_answer_made_by_hand(impl, n):
    # Two blocks of one mean each, the second of 5 tokens. Their logits are ln 2 and 0: weights 2 * n and 5.
    q, k, v = (torch.zeros(1, 1, size, 8) for size in (1, n + 5, n + 5))
    q[..., 0], k[:, :, :n:2, 0] = 1.0, 2 * math.log(2)
    v[:, :, :n:2, 0], v[:, :, n:, 1] = 2.0, 1.0
    levels = torch.full((1, 1, 1, 2), n, dtype=torch.int8)
    out, lse = pyramid_attention(q, k, v, levels, block_m=8, block_n=n, scale=1.0, impl=impl, return_lse=True)
    torch.testing.assert_close(out[0, 0, 0, :2], torch.tensor([2 * n, 5]) / (2 * n + 5))
    torch.testing.assert_close(lse.exp(), torch.tensor([[[2 * n + 5.0]]]))


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("n", BLOCKS, ids=lambda n: f"n{n}")
@pytest.mark.parametrize("impl", FAST)
class TestAgainstTheOracle:
    """The last block holds 7 tokens; every row has level 1 somewhere, so that all gradients flow."""

    def inputs(self, n):
        q, k, v = tensors(heads=2, key_heads=1, queries=90, keys=3 * n + 7, dim=24)
        levels = random_levels(q, k, 32, n, among=(1, 8, n, n))
        levels[..., -1] = n
        return q, k, v, levels

    def test_outputs(self, impl, n, is_causal):
        *inputs, levels = self.inputs(n)
        kwargs = dict(block_m=32, block_n=n, is_causal=is_causal)
        out = pyramid_attention(*inputs, levels, impl=impl, **kwargs)
        assert_as_good_as_eager(out, *inputs, levels, **kwargs)

    def test_gradients(self, impl, n, is_causal):
        *inputs, levels = self.inputs(n)
        kwargs = dict(block_m=32, block_n=n, is_causal=is_causal)
        inputs = [x.requires_grad_() for x in inputs]
        out = pyramid_attention(*inputs, levels, impl=impl, **kwargs)
        grads = torch.autograd.grad(out, inputs, normal_like(out))
        inputs = [x.detach() for x in inputs]
        # The oracle's log-sum-exp is not rounded to float32 between the forward and the backward.
        assert_gradients_as_good_as_eager(grads, normal_like(out), *inputs, levels, slack=3.0, **kwargs)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("mode", ["topk", "thresholdbound"])
@pytest.mark.parametrize("n", BLOCKS, ids=lambda n: f"n{n}")
def test_shares_that_name_it(n, mode, is_causal):
    """Instead of dropping: the choice gives the rest of a row to the level, and every implementation reads it."""
    ratios = {1: (0.0, 0.2), 8: (0.2, 0.5), n: (0.5, 1.0)}
    config = PSAConfig(block_m=32, block_n=n, mask_ratios=ratios, mask_mode=mode, use_rearrange=False)
    q, k, v = tensors(heads=1, key_heads=1, queries=60, keys=6 * n + 7, dim=16)
    out, levels = sparse_attention(q, k, v, config, is_causal=is_causal, impl="reference")
    assert set(levels.unique().tolist()) == ({0, 1, 8, n} if is_causal else {1, 8, n})
    for impl in FAST:
        ours, chosen = sparse_attention(q, k, v, config, is_causal=is_causal, impl=impl)
        assert torch.equal(chosen, levels)
        torch.testing.assert_close(ours, out, rtol=1e-5, atol=1e-5)
