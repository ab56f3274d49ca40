"""Levels where keys are left out: blocks without one have none, and are no part of what shares are shares of."""

import pytest
import torch

from psa_triton import density
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig, SimThresholds
from psa_triton.importance import estimation_cost
from psa_triton.levels import exempt_levels, levels_of, read_density, select_levels, similarity_caps

RATIOS = {1: (0, 0.3), 2: (0.3, 0.5), 8: (0.5, 0.8), 0: (0.8, 1)}
TOPK = PSAConfig(block_m=32, block_n=32, mask_ratios=RATIOS)
BUDGET = PSAConfig(block_m=32, block_n=32, mask_mode="budget", budget=0.4)
CHOICES = {
    "topk": TOPK,
    "thresholdbound": TOPK.replace(mask_mode="thresholdbound", min_full_ratio=0.3),
    "similarity": TOPK.replace(use_sim_mask=True, sim_thresholds={"x2": 0.1, "x4": 0.05, "x8": 0.0}),
    "first block": TOPK.replace(keep_first_block=True, importance="antidiagonal"),
    "budget": BUDGET,
    "budget of a head": BUDGET.replace(budget_scope="head"),
}


def tensors(batch=1, queries=96, keys=180, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, 2, queries, dim), (batch, 1, keys, dim), (batch, 1, keys, dim))
    return [2 * torch.randn(shape, generator=generator) for shape in shapes]


def choose(name, q, k, v, impl="cpu", **kwargs):
    return levels_of(q, k, v, CHOICES[name], impl=impl, **kwargs)


def mask_of(batch, keys, share=0.5, seed=0):
    return torch.rand(batch, keys, generator=torch.Generator().manual_seed(seed)) < share


def test_shares_are_of_the_blocks_that_are_there():
    """Ten blocks, of which 1, 3, 5, 7 and 8 hold a key: two of five full, one at level 4."""
    key_mask = torch.zeros(1, 80, dtype=torch.bool)
    key_mask[:, [8, 24, 47, 60, 71]] = True
    importance = torch.full((1, 1, 1, 10), -1.0)
    importance[..., [1, 3, 5, 7, 8]] = torch.tensor([0.1, 0.5, 0.0, 0.2, 0.2])
    found = select_levels(
        importance, {1: (0, 0.4), 4: (0.4, 0.6), 0: (0.6, 1)}, mode="topk", key_blocks=torch.tensor([5])
    )
    assert found.tolist() == [[[[0, 0, 0, 1, 0, 0, 0, 1, 4, 0]]]]


def test_exemptions_by_hand():
    # Keys 0-15 and 20-23 are left out: block 0 and 1 (of 8) are not there, and the first that is is block 2.
    key_mask = torch.ones(1, 40, dtype=torch.bool)
    key_mask[:, :16] = key_mask[:, 20:24] = False
    levels = torch.full((1, 1, 3, 5), 8, dtype=torch.int8)
    found = exempt_levels(levels, Blocks(16, 8, 40, 40, key_mask=key_mask))
    assert found.tolist() == [[[[0, 0, 8, 8, 8]] * 3]]
    exempt = {"exempt_queries": ((0, 3),), "exempt_keys": ((0, 3),)}
    blocks = Blocks(16, 8, 40, 40, is_causal=True, key_mask=key_mask, **exempt)
    found = exempt_levels(levels, blocks, keep_first_block=True)
    # Queries 0-15 see nothing. Queries 16-31 begin in block 2, whose last kept key is 19. Block 4 is the last one's.
    assert found.tolist() == [[[[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 8, 1]]]]


def test_a_pair_of_alike_neighbours_needs_both():
    # Keys 0, 1 are alike, 1, 2 are opposite; without key 2 all pairs that are left are alike.
    k = torch.ones(1, 1, 8, 8)
    k[:, :, 2] = -1
    thresholds = SimThresholds(x2=0.9, x4=0.9, x8=0.9)
    assert similarity_caps(k, 8, thresholds).item() == 8  # keys 0 and 7
    k[:, :, 7] = -1
    assert similarity_caps(k, 8, thresholds).item() == 1
    key_mask = torch.ones(1, 8, dtype=torch.bool)
    key_mask[:, [2, 7]] = False
    assert similarity_caps(k, 8, thresholds, key_mask=key_mask).item() == 4


def test_density_by_hand():
    # Blocks of 8 with 8, 4 (of pairs 2 and 2), 1 and no keys: at levels 1, 2, 8 and 1 they are 8, 2, 1 and 0 groups.
    key_mask = torch.zeros(1, 32, dtype=torch.bool)
    key_mask[:, :12] = key_mask[:, 20] = True
    levels = torch.tensor([[[[1, 2, 8, 1], [0, 1, 0, 0]]]], dtype=torch.int8)
    torch.testing.assert_close(density(levels, key_mask), torch.tensor([[(11 / 13 + 4 / 13) / 2]]))
    torch.testing.assert_close(density(levels, torch.ones_like(key_mask)), density(levels))
    assert density(levels, torch.zeros_like(key_mask)).item() == 0


def test_density_errors():
    levels = torch.ones(1, 1, 1, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match="levels: expected 0 or powers of two, got -2"):
        density(-2 * levels)
    with pytest.raises(TypeError, match="key_mask: expected a bool tensor or None, got torch.float32"):
        density(levels, torch.ones(1, 32))
    for shape in ((2, 32), (1, 72), (1, 16)):
        with pytest.raises(ValueError, match="key_mask: expected .* make 4 blocks"):
            density(levels, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_budget_is_of_the_keys_that_are_there(is_causal):
    q, k, v = tensors(4, queries=320, keys=320)
    key_mask = mask_of(4, 320, 0.7)
    key_mask[1, :100] = key_mask[2, 200:] = False
    # What is read whatever the budget may be more.
    least, found = (
        read_density(
            levels_of(q, k, v, BUDGET.replace(budget=budget), is_causal=is_causal, key_mask=key_mask),
            Blocks.of(q, k, 32, 32, is_causal, key_mask),
        )
        for budget in (0.035, BUDGET.budget)
    )
    assert (found <= least.clamp(min=BUDGET.budget - estimation_cost("representative", 32, 32)) + 1e-6).all()
    assert (found > 0.3).all()


@pytest.mark.parametrize(
    ("name", "is_causal", "batch"),
    [
        ("topk", True, 2),
        ("thresholdbound", False, 2),
        ("first block", True, 2),
        ("budget", True, 2),
        ("budget", False, 1),  # blocks of an only item have prices of their own, too
    ],
)
def test_gpu_kernels_choose_the_same_levels(name, is_causal, batch):
    pytest.importorskip("triton")
    q, k, v = tensors(batch, queries=40, keys=75)
    key_mask = mask_of(batch, 75, 0.5)
    key_mask[0, :20] = key_mask[-1, 32:48] = False
    found, expected = (
        choose(name, q, k, v, impl=impl, is_causal=is_causal, key_mask=key_mask) for impl in ("triton", "cpu")
    )
    assert torch.equal(found, expected)
