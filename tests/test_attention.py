import logging

import pytest
import torch
import torch.nn.functional as F

import psa_triton
from psa_triton import PSAAttention, PSAConfig, psa_attention
from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.levels import read_density

FULL = PSAConfig(mask_ratios={1: (0.0, 1.0)})


def tensors(queries=120, keys=None, heads=2, key_heads=2, dim=32, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(h, n):
        return torch.randn(1, h, n, dim, generator=generator).to(dtype)

    keys = queries if keys is None else keys
    return normal(heads, queries), normal(key_heads, keys), normal(key_heads, keys)


def smooth_video(grid, dim=32, seed=0):
    """q, k, v over a grid on which neighbours are alike, as in a video; tokens in raster order."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(3 * 2 * dim, *(max(2, -(-size // 4)) for size in grid), generator=generator)
    fine = F.interpolate(coarse[None], size=grid, mode="trilinear", align_corners=True)[0]
    return tuple((3 * x).flatten(2).mT[None] for x in fine.unflatten(0, (3, 2, dim)))


@pytest.mark.parametrize("method", ["Gilbert", "STA", "SemanticAware", "Hybrid"])
@pytest.mark.parametrize(("grid", "prefix"), [((1, 1, 1), 0), ((3, 5, 7), 0), ((4, 6, 5), 17)], ids=str)
def test_reading_everything_is_dense_attention_in_any_order(method, grid, prefix):
    q, k, v = tensors(grid[0] * grid[1] * grid[2] + prefix, heads=4)
    out = psa_attention(q, k, v, FULL.replace(rearrange_method=method), grid=grid, prefix_tokens=prefix)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, enable_gqa=True), rtol=1e-4, atol=1e-5)


def test_reading_everything_is_dense_attention_when_causal():
    q, k, v = tensors(70, 150, heads=6)
    mask = torch.ones(70, 150, dtype=torch.bool).tril(150 - 70)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(psa_attention(q, k, v, FULL, is_causal=True), expected, rtol=1e-4, atol=1e-5)


def test_the_pyramid_beats_dropping_blocks_at_equal_density():
    q, k, v = smooth_video((8, 16, 16))
    dense = F.scaled_dot_product_attention(q, k, v)
    pyramid = PSAConfig(block_n=32)
    dropping = pyramid.replace(mask_ratios={1: (0.0, 0.15), 0: (0.15, 1.0)})
    errors, densities = [], []
    for config in (pyramid, dropping):
        out, levels = sparse_attention(q, k, v, config, grid=(8, 16, 16))
        errors.append(float((out - dense).norm() / dense.norm()))
        density = read_density(levels, Blocks(128, 32, 2048, 2048))
        densities.append(float(density.mean()))
    assert densities[0] <= densities[1] + 0.01
    assert errors[0] < 0.8 * errors[1]


def test_a_space_filling_order_beats_raster_order():
    grid = (4, 24, 24)
    q, k, v = smooth_video(grid)
    dense = F.scaled_dot_product_attention(q, k, v)

    def error(config):
        return float((psa_attention(q, k, v, config, grid=grid) - dense).norm())

    config = PSAConfig(block_n=32)
    assert error(config) < error(config.replace(use_rearrange=False))


def test_without_a_generator_every_run_is_the_same_and_the_global_state_is_not_touched():
    q, k, v = tensors(500)
    state = torch.get_rng_state()
    assert torch.equal(psa_attention(q, k, v), psa_attention(q, k, v))
    first, second = (psa_attention(q, k, v, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, psa_attention(q, k, v, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_bad_query_spoils_one_row():
    q, k, v = tensors(300)
    q[0, 1, 77] = float("nan")
    out = psa_attention(q, k, v)
    spoiled = out.isnan().any(-1)
    assert spoiled[0, 1, 77] and spoiled.sum() == 1


def test_the_module_is_the_function():
    q, k, v = tensors(200)
    config = PSAConfig(block_n=32)
    module = PSAAttention(config)
    assert list(module.parameters()) == []
    assert torch.equal(module(q, k, v, grid=(2, 10, 10)), psa_attention(q, k, v, config, grid=(2, 10, 10)))
    assert "block_n=32" in repr(module)


def test_verbose_logs_the_density(caplog):
    q, k, v = tensors(200)
    with caplog.at_level(logging.INFO, logger="psa_triton"):
        psa_attention(q, k, v, FULL.replace(verbose=True))
    assert "200 queries, 200 keys: density 1.000" in caplog.text


def test_the_public_names_are_those_of_the_documentation():
    names = "PSAAttention PSAConfig psa_attention pyramid_attention block_importance select_levels density"
    assert set(psa_triton.__all__) == {*names.split(), "load_preset", "apply_psa", "remove_psa"}
    assert all(callable(getattr(psa_triton, name)) for name in psa_triton.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = psa_triton.nothing
