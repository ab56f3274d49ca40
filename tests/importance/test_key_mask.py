"""Importance where keys are left out: as if these were not there."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton import block_importance

METHODS = ["sampled", "finely_sampled", "antidiagonal", "pooled", "representative"]
EACH = pytest.mark.parametrize("method", METHODS)


def tensors(batch=1, heads=2, key_heads=1, queries=70, keys=100, dim=16, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, queries, dim), (batch, key_heads, keys, dim))
    return [(2 * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


@EACH
def test_padding_by_whole_blocks_on_the_left_is_a_shorter_sequence(method):
    """Queries too are padded, as they are in a language model."""
    q, k = tensors(queries=160, keys=160)
    kwargs = dict(block_m=32, block_n=32, method=method, is_causal=True)
    found = block_importance(q, k, key_mask=torch.arange(160)[None] >= 64, **kwargs)
    torch.testing.assert_close(found[:, :, 2:, 2:], block_importance(q[:, :, 64:], k[:, :, 64:], **kwargs))
    assert (found[..., :2] == 0).all() and (found[:, :, :2] == 0).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_sum_to_1_over_blocks_with_a_kept_key_whatever_the_others_hold(data):
    method, is_causal = data.draw(st.sampled_from(METHODS)), data.draw(st.booleans())
    queries, keys = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    key_mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=2 * keys, max_size=2 * keys))).view(2, keys)
    q, k = tensors(2, queries=queries, keys=keys)
    kwargs = dict(block_m=8, block_n=16, method=method, is_causal=is_causal, key_mask=key_mask)
    found = block_importance(q, k, **kwargs)
    newest = torch.arange(8, queries + 8, 8).clamp(max=queries) - 1 + keys - queries
    for b in range(2):
        for j in range(found.shape[-1]):
            positions = key_mask[b, 16 * j : 16 * j + 16].nonzero()[:, 0] + 16 * j
            limit = newest if is_causal else torch.full_like(newest, keys)
            visible = (positions[:, None] <= limit).any(0)
            assert (found[b, :, ~visible, j] == 0).all()
    total = found.sum(-1)
    sees = (found > 0).any(-1)
    torch.testing.assert_close(total, sees.float())
    first_kept = torch.where(key_mask.any(-1), key_mask.int().argmax(-1), keys)
    assert torch.equal(sees, ((newest if is_causal else torch.full_like(newest, keys - 1)) >= first_kept[:, None])[:, None].expand_as(sees))  # fmt: skip  # noqa: E501
    for bad in (math.nan, math.inf, 1e4):
        assert torch.equal(block_importance(q, k.masked_fill(~key_mask[:, None, :, None], bad), **kwargs), found)


def test_a_sample_is_a_kept_key():
    """One of four keys is looked at: key 2 of each stratum, where 0 and 1 are left out and would have been it."""
    q, k = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 16, 8)
    k[:, :, [0, 1]] = 100.0
    k[:, :, 2] = math.log(3) / 8
    key_mask = torch.ones(1, 16, dtype=torch.bool)
    key_mask[:, [0, 1, 4]] = False
    # Samples are keys 2, 5, 8, 12 with logits ln 3, 0, 0, 0: block maxima 3/6 and 1/6.
    found = block_importance(q, k, block_m=8, block_n=8, method="sampled", scale=1.0, key_mask=key_mask)
    torch.testing.assert_close(found, torch.tensor([[[[3 / 4, 1 / 4]]]]))


def test_a_group_weighs_as_many_keys_as_are_kept():
    """Equal keys, 2 of 8 kept in the first group and all in the second: masses 2 and 8."""
    q, k = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 16, 8)
    key_mask = torch.ones(1, 16, dtype=torch.bool)
    key_mask[:, :6] = False
    for method in ("pooled", "antidiagonal"):
        found = block_importance(q, k, block_m=8, block_n=8, method=method, key_mask=key_mask)
        torch.testing.assert_close(found, torch.tensor([[[[0.2, 0.8]]]]))
