"""The pooled-logit correction: answers made by hand, what it is for, and every implementation against the oracle."""

import math

import pytest
import torch
from accuracy import normal_like, oracle, random_levels, tensors

from psa_triton.kernels import pyramid_attention

FAST = ["cpu", "triton"]


def corrected(q, k, v, levels, **kwargs):
    return pyramid_attention(q, k, v, levels, pool_correction="isotropic", **kwargs)


def two_keys_apart(offset=0.0):
    """One query of length 2 and 16 keys, all alike but two neighbours, which lie 1 to either side of the others."""
    q, k, v = (torch.zeros(1, 1, n, 8) for n in (1, 16, 16))
    q[0, 0, 0, 0] = 2.0
    k[..., 1] = offset  # across the query: it changes no logit
    k[0, 0, 0, 0], k[0, 0, 1, 0] = 1.0, -1.0
    v[0, 0, 0, 0], v[0, 0, 1, 0] = 1.0, 3.0
    return q, k, v


@pytest.mark.parametrize("impl", ["reference", *FAST])
class TestByHand:
    def test_a_pair(self, impl):
        # spread = (1 + 1) / (2 * 8) = 1/8, so the pair's logit gets 1/2 * 2 ** 2 * 1/8 = 1/4: it weighs 2 * exp(1/4),
        # the other three pairs 2 each; block 1 is skipped.
        q, k, v = two_keys_apart()
        levels = torch.tensor([[[[2, 0]]]], dtype=torch.int8)
        out, lse = corrected(q, k, v, levels, block_m=8, block_n=8, scale=1.0, impl=impl, return_lse=True)
        pair = 2 * math.exp(0.25)
        torch.testing.assert_close(out[0, 0, 0, 0], torch.tensor(2 * pair / (pair + 6)))
        torch.testing.assert_close(lse, torch.tensor([[[math.log(pair + 6)]]]))

    @pytest.mark.parametrize(("level", "gain"), [(1, None), (2, 1 / 4), (4, 1 / 8), (8, 1 / 16), (16, 0.0)])
    def test_the_group_of_each_level(self, impl, level, gain):
        # The two keys' squared distances, 1 + 1, are shared by the tokens of the group and 8 dimensions.
        q, k, v = two_keys_apart()
        levels = torch.full((1, 1, 1, 1), level, dtype=torch.int8)
        _, lse = corrected(q, k, v, levels, block_m=8, block_n=16, scale=1.0, impl=impl, return_lse=True)
        mass = 14 + math.exp(2) + math.exp(-2) if gain is None else 16 - level + level * math.exp(gain)
        torch.testing.assert_close(lse.exp(), torch.tensor([[[mass]]]))

    def test_a_short_group_counts_its_true_tokens(self, impl):
        # Three keys: at level 2 a pair and a single one, at level 8 a group of three with spread 2 / (3 * 8).
        q, k, v = (x[:, :, :3] for x in two_keys_apart())
        for level, mass in ((2, 2 * math.exp(1 / 4) + 1), (8, 3 * math.exp(1 / 6))):
            levels = torch.full((1, 1, 1, 1), level, dtype=torch.int8)
            _, lse = corrected(q, k, v, levels, block_m=8, block_n=8, scale=1.0, impl=impl, return_lse=True)
            torch.testing.assert_close(lse.exp(), torch.tensor([[[mass]]]))

    @pytest.mark.parametrize("offset", [100.0, 4000.0])
    def test_keys_far_from_the_origin(self, impl, offset):
        # Squared, the offset is 1.6e7: a difference of squares in float32 would leave nothing of the spread.
        q, k, v = two_keys_apart(offset)
        levels = torch.tensor([[[[8, 0]]]], dtype=torch.int8)
        _, lse = corrected(q, k, v, levels, block_m=8, block_n=8, scale=1.0, impl=impl, return_lse=True)
        torch.testing.assert_close(lse, torch.tensor([[[math.log(8) + 1 / 16]]]))


@pytest.mark.parametrize("level", [2, 4, 8])
def test_weighs_groups_of_isotropic_keys_nearly_right(level):
    q, center, v = tensors(heads=1, key_heads=1, queries=200, keys=32, dtype=torch.float64)
    k = center.repeat_interleave(level, 2) + normal_like(torch.empty(1, 1, 32 * level, 64, dtype=torch.float64))
    v = v.repeat_interleave(level, 2)

    def log_mass(chosen, **kwargs):
        levels = torch.full((1, 1, 4, 4), chosen, dtype=torch.int8)
        return oracle(q, k, v, levels, block_m=64, block_n=8 * level, **kwargs)[1]

    truth = log_mass(1)
    lost = (truth - log_mass(level)).mean()
    left = (truth - log_mass(level, pool_correction="isotropic")).mean()
    assert lost > 0.2  # Jensen: the mean of exponentials is larger than the exponential of the mean
    assert left.abs() < lost / 8


def test_levels_beyond_8_and_none_are_as_without_it():
    q, k, v = tensors(queries=40, keys=150, dim=16)
    kwargs = dict(block_m=32, block_n=64)
    coarse = random_levels(q, k, 32, 64, among=(0, 1, 16, 32, 64))
    for impl in ("reference", *FAST):
        plain = pyramid_attention(q, k, v, coarse, impl=impl, **kwargs)
        torch.testing.assert_close(corrected(q, k, v, coarse, impl=impl, **kwargs), plain)
        assert torch.equal(pyramid_attention(q, k, v, coarse, impl=impl, pool_correction="none", **kwargs), plain)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_a_scale_of_zero_weighs_all_keys_alike(impl):
    q, k, v = (x.requires_grad_() for x in tensors(queries=10, keys=20, dim=8))
    levels = random_levels(q, k, 8, 8, among=(1, 2, 8))
    out = corrected(q, k, v, levels, block_m=8, block_n=8, scale=0.0, impl=impl)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))
    for grad in torch.autograd.grad(out.square().sum(), (q, k)):
        assert (grad == 0.0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_a_key_that_is_not_finite_spoils_no_query_before_its_group(impl, value):
    q, k, v = tensors(queries=64, keys=64, dim=16)
    levels = torch.full((1, 2, 4, 4), 4, dtype=torch.int8)
    kwargs = dict(block_m=16, block_n=16, is_causal=True, impl=impl)
    clean = corrected(q, k, v, levels, **kwargs)
    k[0, 0, 33, 3] = value
    out = corrected(q, k, v, levels, **kwargs)
    torch.testing.assert_close(out[0, 0, :35], clean[0, 0, :35])  # to rounding: another way may mend them
    assert torch.equal(out[0, 1], clean[0, 1])
    assert not out[0, 0, 35:].isfinite().all(-1).any()


@pytest.mark.parametrize("impl", FAST)
def test_a_key_that_nothing_reads_spoils_no_gradient_of_its_neighbours(impl):
    inputs = tensors(heads=1, key_heads=1, queries=16, keys=32, dim=16)
    inputs[1][0, 0, 17] = math.nan
    q, k, v = (x.requires_grad_() for x in inputs)
    levels = torch.tensor([[[[2, 0]]]], dtype=torch.int8)
    out = corrected(q, k, v, levels, block_m=16, block_n=16, impl=impl)
    (grad_k,) = torch.autograd.grad(out.square().sum(), k)
    assert (grad_k[:, :, :16] != 0.0).all()
    assert (grad_k[:, :, 16:] == 0.0).all()
