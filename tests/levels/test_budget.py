"""Levels by a budget: the best choice there is, within the budget, whatever must be read in full."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton import PSAConfig, psa_attention
from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.exempt import as_prefix
from psa_triton.importance import block_importance, estimation_cost
from psa_triton.levels import levels_of, read_density
from psa_triton.levels.budget import budget_levels, expected_errors, ladder
from psa_triton.levels.budget.allocation import allocate
from psa_triton.levels.budget.ladder import benefit_rates, step_prices
from psa_triton.levels.budget.spread import group_spread

CPU = torch.device("cpu")
BUDGET = PSAConfig(mask_mode="budget", block_m=32, block_n=32, use_rearrange=False)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(count=700, heads=4, key_heads=2, seed=0):
    """Heads from flat to peaked attention over keys and values that change slowly, some of them faster than others."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, h, count, 16, generator=generator) for h in (heads, key_heads, key_heads))
    smooth = torch.linspace(0, 1, count)[:, None]
    k, v = (x.cumsum(-2) / count**0.5 + smooth * x for x in (k, v))
    return q * torch.linspace(0.5, 4, heads)[:, None, None], k, v


def errors_of(q, k, v, block_n=32, scale=0.25, impl="cpu"):
    return expected_errors(q, k, v, Blocks.of(q, k, 32, block_n), scale=scale, impl=impl)


def random_errors(blocks, levels, seed):
    """Of `[1, 1, blocks, levels]`, falling with the level and 0 at level 1, but with no other shape."""
    errors = draw(1, 1, blocks, levels, seed=seed).sort(-1, descending=True).values
    errors[..., -1] = 0
    return errors


def spent(steps, prices):
    totals = torch.nn.functional.pad(prices.T.cumsum(-1), (1, 0))
    return totals.expand(*steps.shape, -1).gather(-1, steps.long()[..., None]).sum((-2, -1))


class TestSpread:
    def test_is_the_mean_squared_distance_from_the_groups_mean(self):
        x = torch.randn(2, 3, 75, 8, generator=torch.Generator().manual_seed(1))
        found, means = group_spread(x, Blocks(8, 32, 1, 75))
        for j, block in enumerate(x.split(32, dim=-2)):
            torch.testing.assert_close(means[..., j, :], block.mean(-2))
            for i, level in enumerate((2, 4, 8, 16, 32)):
                distances = [(g - g.mean(-2, keepdim=True)).square().sum(-1) for g in block.split(level, dim=-2)]
                torch.testing.assert_close(found[..., j, i], torch.cat(distances, -1).mean(-1))

    def test_of_equal_tokens_far_from_zero_is_exactly_zero(self):
        x = torch.full((1, 1, 100, 8), 1234.567)
        assert (group_spread(x, Blocks(8, 64, 1, 100))[0] == 0).all()


class TestExpectedErrors:
    def test_by_hand(self):
        # Two blocks of 8 whose keys and values alternate between a and -a: all spread is inside pairs.
        sign = torch.tensor([1.0, -1.0]).repeat(8)[:, None]
        k, v = (sign * torch.tensor([size] + [0.0] * 7) for size in (2.0, 3.0))
        q = torch.ones(1, 1, 16, 8)
        found = errors_of(q, k[None, None], v[None, None], block_n=8, scale=0.5)
        # Values lie 9 from their mean; logits vary by .25 * 1 * 4, so a pooled block misses 1/4 (1 - 1/e^2) of 9.
        pooled = 9 / 4 * (1 - torch.exp(torch.tensor(-2.0)))
        torch.testing.assert_close(found[0, 0, 0], torch.tensor([9.0, pooled, pooled, pooled, 0.0]))

    def test_equal_keys_are_worth_nothing_but_to_be_seen(self):
        q, _, v = tensors()
        found = errors_of(q, torch.ones_like(v), v)
        assert (found[..., 0] > 0).all()
        assert (found[..., 1:] == 0).all()


class TestBenefitRates:
    def test_a_finer_level_that_is_worse_is_not_worth_anything(self):
        assert benefit_rates(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1, 1])).tolist() == [0.0, 0.0]


class TestAllocate:
    PRICES = step_prices(Blocks(8, 8, 1, 4 * 8), CPU)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10_000), st.integers(0, 32))
    def test_no_other_choice_of_the_same_price_is_better(self, seed, limit):
        errors = random_errors(4, 5, seed)
        weights = draw(1, 1, 1, 4, seed=seed + 1)
        rates = benefit_rates(errors, self.PRICES.T).mT
        steps = allocate(weights, rates, self.PRICES, torch.tensor([[[limit]]]).int())
        price = spent(steps, self.PRICES).item()
        assert price <= limit

        def error(choice):
            return sum(float(weights[0, 0, 0, j] * errors[0, 0, j, step]) for j, step in enumerate(choice))

        totals = [0, *self.PRICES[:, 0].cumsum(0).tolist()]
        choices = itertools.product(range(5), repeat=4)
        best = min(error(choice) for choice in choices if sum(totals[step] for step in choice) <= price)
        assert error(steps.flatten().tolist()) <= best + 1e-6

    def test_ties_are_paid_in_the_order_of_position(self):
        # Four equal blocks; their first step costs 1, the merged rest 7: what is left of 9 pays for one more.
        rates = torch.tensor([2.0, 1.0, 1.0, 1.0])[:, None].expand(4, 4)[None, None]
        weights = torch.ones(1, 1, 3, 4)
        steps = allocate(weights, rates, self.PRICES, torch.tensor([[[3, 4, 13]]]).int())
        assert steps[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [4, 1, 1, 1]]

    def test_nothing_is_paid_for_what_saves_nothing(self):
        weights = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 1, 1, 4)
        rates = torch.tensor([3.0, 2.0, 1.0, 0.0])[:, None].expand(4, 4)[None, None]
        assert allocate(weights, rates, self.PRICES, torch.tensor([[[32]]]).int()).tolist() == [[[[0, 3, 0, 3]]]]


def chosen(budget, *, scope="row", is_causal=False, prefix=0, first=False):
    """Levels of `tensors()` at a budget, and their density in each head with the estimate of importance."""
    q, k, v = tensors()
    config = BUDGET.replace(budget=budget, budget_scope=scope, keep_first_block=first)
    exempt = {"exempt_queries": as_prefix(prefix), "exempt_keys": as_prefix(prefix)}
    levels = levels_of(q, k, v, config, is_causal=is_causal, **exempt)
    density = read_density(levels, Blocks(32, 32, 700, 700, is_causal=is_causal))
    return levels, density + estimation_cost(config.importance, 32, 32)


def allot(importance, errors, blocks, budget, scope, impl="cpu"):
    return budget_levels(importance, errors, blocks, budget, keep_first_block=False, scope=scope, impl=impl)


CALLS = {
    "full": {},
    "causal": {"is_causal": True},
    "prefix": {"prefix": 40},
    "causal, first block": {"is_causal": True, "first": True},
}
calls = pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))
scopes = pytest.mark.parametrize("scope", ["row", "head", "layer"])


class TestBudget:
    @calls
    @scopes
    @pytest.mark.parametrize("budget", [0.3, 0.6])
    def test_is_met_and_used(self, call, scope, budget):
        _, density = chosen(budget, scope=scope, **call)
        _, least = chosen(0.032, scope=scope, **call)  # what is read whatever the budget
        total, least = (x.mean() if scope == "layer" else x for x in (density, least))
        assert (total <= least.clamp(min=budget) + 1e-6).all()
        assert (total >= budget - 0.05).all()

    @calls
    @scopes
    def test_a_larger_one_never_coarsens_a_block(self, call, scope):
        costs = [chosen(budget, scope=scope, **call)[0].float() for budget in (0.25, 0.3, 0.5, 0.9)]
        costs = [(1 / levels).masked_fill(levels == 0, 0) for levels in costs]
        for less, more in itertools.pairwise(costs):
            assert (more >= less).all()

    def test_exempt_blocks_alone_may_exceed_it(self):
        levels, _ = chosen(0.02, is_causal=True)
        assert set(levels.unique().tolist()) == {0, 1}

    def test_of_a_layer_goes_to_the_heads_that_gain_most(self):
        q, k, v = tensors()
        importance = block_importance(q, k, block_m=32, block_n=32, method="representative")
        errors = errors_of(q, k, v)
        place = torch.zeros(65, dtype=torch.int64)
        for i, level in enumerate(ladder(32)):
            place[level] = i

        def remaining(scope):
            levels = allot(importance, errors, Blocks(32, 32, 700, 700), 0.2, scope)
            of_level = errors[:, :, None].expand(*levels.shape, -1).gather(-1, place[levels.long()][..., None])
            return (importance.square()[..., None] * of_level).sum()

        assert remaining("layer") < remaining("head") < remaining("row")

    def test_leaves_less_error_than_keeping_or_dropping(self):
        q, k, v = tensors(1500)
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        rival = BUDGET.replace(
            mask_mode="topk", importance="representative", mask_ratios={1: (0, 0.1922), 0: (0.1922, 1)}
        )
        ours, theirs = (
            (psa_attention(q, k, v, config) - dense).norm() for config in (BUDGET.replace(budget=0.2), rival)
        )
        assert ours < 0.6 * theirs

    def test_below_the_cost_of_the_estimate_is_an_error(self):
        with pytest.raises(ValueError, match=r"budget: expected more than 0.0312, what importance 'sampled' alone"):
            levels_of(*tensors(), BUDGET.replace(budget=0.03, importance="sampled"))

    def test_wants_the_values(self):
        q, k, _ = tensors()
        with pytest.raises(ValueError, match="v: expected the values"):
            levels_of(q, k, None, BUDGET)

    @pytest.mark.parametrize("name", ["k", "v"])
    def test_a_block_with_nan_is_read_in_full(self, name):
        q, k, v = tensors()
        {"k": k, "v": v}[name][0, 1, 70, 3] = torch.nan
        out, levels = sparse_attention(q, k, v, BUDGET.replace(budget=0.3))
        assert (levels[0, 2:, :, 2] == 1).all()
        assert out[0, 2:].isnan().any(-1).all()
        assert out[0, :2].isfinite().all()


@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_gpu_kernels_choose_the_same_levels(scope, is_causal):
    pytest.importorskip("triton")
    q, k, v = tensors(150)
    importance = block_importance(q, k, block_m=32, block_n=16, method="representative", is_causal=is_causal)
    errors = errors_of(q, k, v, block_n=16)
    torch.testing.assert_close(errors_of(q, k, v, block_n=16, impl="triton"), errors)
    importance, errors = importance[:, 1:3, :2], errors[:, 1:3]  # the interpreter takes long
    blocks = Blocks(32, 16, 64, 150, is_causal)
    found, expected = (allot(importance, errors, blocks, 0.4, scope, impl) for impl in ("triton", "reference"))
    assert torch.equal(found, expected)
