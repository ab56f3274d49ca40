"""Keys left out of the whole operator: importance, levels, orders and attention agree on what is there."""

import math

import pytest
import torch
import torch.nn.functional as F

from psa_triton import PSAAttention, PSAConfig, psa_attention
from psa_triton.attention import sparse_attention

FULL = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0.0, 1.0)})
SPARSE = PSAConfig(block_m=32, block_n=32, mask_mode="topk")
CONFIGS = {
    "topk": SPARSE,
    "corrected": SPARSE.replace(pool_correction="isotropic", use_sim_mask=True),
    "thresholdbound": SPARSE.replace(mask_mode="thresholdbound", importance="antidiagonal"),
    "first block": SPARSE.replace(keep_first_block=True, importance="pooled"),
    "budget": SPARSE.replace(mask_mode="budget", budget=0.4, importance="representative"),
    "budget of a head": SPARSE.replace(mask_mode="budget", budget_scope="head", importance="representative"),
}
GRID = (3, 7, 9)


def tensors(batch=2, tokens=189, dim=32, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, tokens, dim, generator=generator).to(dtype) for heads in (4, 2, 2)]


def mask(tokens=189):
    """Left and right padding, and a hole in the second."""
    key_mask = torch.ones(2, tokens, dtype=torch.bool)
    key_mask[0, :50] = key_mask[1, -70:] = key_mask[1, 3:9] = False
    return key_mask


@pytest.mark.parametrize("method", [None, "Gilbert", "STA", "SemanticAware", "Hybrid"])
@pytest.mark.parametrize("prefix", [0, 17])
def test_reading_everything_is_dense_attention_over_the_keys_that_are_there(method, prefix):
    q, k, v = tensors(tokens=189 + prefix)
    key_mask = mask(189 + prefix)
    config = FULL.replace(rearrange_method=method) if method else FULL.replace(use_rearrange=False)
    out = psa_attention(q, k, v, config, grid=GRID, prefix_tokens=prefix, key_mask=key_mask)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None], enable_gqa=True)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)


def test_causal_with_padding_is_dense_attention_over_the_keys_that_are_there():
    q, k, v = tensors()
    key_mask = mask()
    seen = key_mask[:, None, None] & torch.ones(189, 189, dtype=torch.bool).tril()
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    out = psa_attention(q, k, v, FULL, is_causal=True, key_mask=key_mask)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    assert (out[0, :, :50] == 0).all()


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("method", [None, "Gilbert", "SemanticAware"])
def test_what_is_left_out_does_not_matter_and_has_no_gradient(name, method):
    config = CONFIGS[name].replace(use_rearrange=method is not None, rearrange_method=method or "Gilbert")
    q, k, v = (x.requires_grad_() for x in tensors())
    key_mask = mask()
    hidden = ~key_mask[:, None, :, None].expand_as(k)
    kwargs = dict(grid=GRID, key_mask=key_mask)
    out = psa_attention(q, k, v, config, **kwargs)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads)
    assert all((grad[hidden] == 0).all() for grad in grads[1:])
    bad = [x.detach().masked_fill(hidden, math.nan).requires_grad_() for x in (k, v)]
    again = psa_attention(q, *bad, config, **kwargs)
    assert torch.equal(again, out)
    for got, want in zip(torch.autograd.grad(again.square().sum(), (q, *bad)), grads, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("kept", [1, 64, 150])
def test_padding_on_the_right_is_a_shorter_sequence(name, kept):
    q, k, v = tensors(1)
    out, levels = sparse_attention(q, k, v, CONFIGS[name], key_mask=torch.arange(189)[None] < kept)
    alone, levels_alone = sparse_attention(q, *(x[:, :, :kept] for x in (k, v)), CONFIGS[name])
    assert torch.equal(levels[..., : levels_alone.shape[-1]], levels_alone)
    torch.testing.assert_close(out, alone)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_reference_and_cpu_agree_and_a_mask_of_true_changes_nothing(name):
    q, k, v = tensors()
    expected = psa_attention(q, k, v, CONFIGS[name], grid=GRID, key_mask=mask(), impl="reference")
    torch.testing.assert_close(psa_attention(q, k, v, CONFIGS[name], grid=GRID, key_mask=mask()), expected)
    all_true = torch.ones(2, 189, dtype=torch.bool)
    for impl in ("reference", "cpu"):
        kwargs = dict(grid=GRID, impl=impl)
        masked = sparse_attention(q, k, v, CONFIGS[name], key_mask=all_true, **kwargs)
        for found, expected in zip(masked, sparse_attention(q, k, v, CONFIGS[name], **kwargs), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(("name", "is_causal"), [("topk", False), ("budget", True)])
def test_one_graph(name, is_causal):
    q, k, v = (x.requires_grad_() for x in tensors())
    module = PSAAttention(CONFIGS[name].replace(use_rearrange=not is_causal))
    kwargs = dict(grid=GRID, is_causal=is_causal, key_mask=mask())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    out, expected = compiled(q, k, v, **kwargs), module(q, k, v, **kwargs)
    assert torch.equal(out, expected)
    for got, want in zip(*(torch.autograd.grad(x.sum(), (q, k, v)) for x in (out, expected)), strict=True):
        assert torch.equal(got, want)


def test_mapped():
    """Over masks alone, over tensors and masks, and the gradient of either."""
    q, k, v = tensors()
    masks = torch.stack([mask(), mask().flip(1)])
    kwargs = dict(config=CONFIGS["corrected"], grid=GRID)
    found = torch.vmap(lambda keep: psa_attention(q, k, v, key_mask=keep, **kwargs))(masks)
    assert torch.equal(found, torch.stack([psa_attention(q, k, v, key_mask=keep, **kwargs) for keep in masks]))

    def loss(k, keep):
        return psa_attention(q, k, v, key_mask=keep, **kwargs).square().sum()

    keys = torch.stack([k, k.flip(2)])
    found = torch.vmap(torch.func.grad(loss))(keys, masks)
    for got, x, keep in zip(found, keys, masks, strict=True):
        torch.testing.assert_close(got, torch.func.grad(loss)(x, keep))
        assert (got[~keep[:, None, :, None].expand_as(got)] == 0).all()
