"""The whole operator by GPU kernels, interpreted: importance, selection, pooling, lists and attention as shipped."""

import pytest
import torch

from psa_triton import PSAConfig, load_preset, products, pyramid_attention
from psa_triton.attention import sparse_attention
from psa_triton.presets import load_presets_file

SHIPPED = [
    config
    for model, section in load_presets_file().sections.items()
    for name in section.attention_configs
    if (config := load_preset(model, name)) is not None
]
CONFIGS = {
    f"{c.mask_mode} {c.block_m}x{c.block_n} {c.importance} {c.use_sim_mask} {c.keep_first_block} {c.budget_scope}": c
    for c in (PSAConfig(), *SHIPPED)
}
"""The shipped presets, one of each kind: others differ in numbers that are arguments of the same kernels."""


def inputs(dtype, tokens):
    """`[B, H, N, D]` as views of `[B, N, H, D]`, as models hand them over; neighbours are alike."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(3, 1, tokens, 2, 64, generator=generator).cumsum(2) * 0.3
    noise = torch.randn(3, 1, tokens, 2, 64, generator=generator)
    return tuple((walk + noise).to(dtype).transpose(2, 3).unbind(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_preset(name, monkeypatch):
    config = CONFIGS[name].replace(use_rearrange=False)
    q, k, v = inputs(torch.bfloat16, 420)
    blocks = dict(block_m=config.block_m, block_n=config.block_n)
    out, levels = sparse_attention(q, k, v, config, prefix_tokens=20, impl="triton")
    expected = pyramid_attention(q.double(), k.double(), v.double(), levels, impl="reference", **blocks)
    error = (out.double() - expected).norm() / expected.norm()
    with monkeypatch.context() as patch:  # eager code: products in bfloat16 even where the processor has none
        patch.setattr(products, "multiplies", lambda dtype: True)
        plain, _ = pyramid_attention(q, k, v, levels, impl="cpu", return_lse=True, **blocks)
    eager = (plain.double() - expected).norm() / expected.norm()
    assert error <= 1.6 * eager  # the interpreter cuts bfloat16 off where a GPU rounds
    assert levels.unique().numel() > 1
    _, on_cpu = sparse_attention(q, k, v, config, prefix_tokens=20, impl="cpu")
    # An estimate in another order of sums may swap two blocks of almost equal importance.
    assert (levels == on_cpu).float().mean() > 0.97
