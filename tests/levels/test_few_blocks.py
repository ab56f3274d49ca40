"""Few blocks: shares of them floor to nothing, and a row that may see anything reads something all the same."""

from itertools import product

import pytest
import torch

from psa_triton import PSAConfig, load_preset, psa_attention, select_levels
from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.importance import block_importance
from psa_triton.levels.exemptions import serve_first_queries
from psa_triton.presets import load_presets_file

PRESETS = {
    f"{model}/{name}": config
    for model, section in load_presets_file().sections.items()
    for name in section.attention_configs
    if (config := load_preset(model, name)) is not None
}
CONFIGS = {
    f"{c.mask_mode} {c.block_m}x{c.block_n} {c.importance} {c.use_sim_mask} {c.keep_first_block} {c.mask_ratios[1]}": c
    for c in PRESETS.values()
}
"""The shipped presets, one of each kind: those that choose levels alike are the same."""
OTHERS = {
    "topk": PSAConfig(),
    "topk, blocks of 32": PSAConfig(block_m=32, block_n=32),
    "thresholdbound": PSAConfig(mask_mode="thresholdbound", min_full_ratio=0.0),
    "no level 1": PSAConfig(mask_ratios={1: (0, 0), 2: (0, 0.1), 8: (0.1, 0.2), 0: (0.2, 1)}),
    "budget, blocks of 32": PSAConfig(mask_mode="budget", block_m=32, block_n=32),
    "budget of a layer": PSAConfig(mask_mode="budget", budget_scope="layer", block_m=32, block_n=32),
}


def draw(tokens, keys, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, 2, tokens, 16, generator=generator)
    k, v = torch.randn(2, batch, 2, keys, 16, generator=generator)
    return q, k + k.cumsum(-2) / 8, v


def finest(config):
    """The finest level that has a share; in a budget every level has."""
    if config.mask_mode != "topk":
        return 1
    return next(level for level, (low, high) in config.mask_ratios.items() if low < high)


def check(config, queries, keys, *, is_causal, impl, seed=0):
    config = config.replace(use_rearrange=False, attn_impl="auto")
    q, k, v = draw(queries, keys, seed)
    out, levels = sparse_attention(q, k, v, config, is_causal=is_causal, impl=impl)
    position = torch.arange(queries) + (keys - queries if is_causal else keys)
    assert (out != 0).any(-1)[..., position >= 0].all(), "a query that sees a key reads nothing"
    importance = block_importance(
        q, k, block_m=config.block_m, block_n=config.block_n, method=config.importance, is_causal=is_causal, impl=impl
    )
    most = levels.gather(-1, importance.argmax(-1, keepdim=True)).squeeze(-1)
    sees = position[config.block_m - 1 :: config.block_m] >= 0
    sees = torch.cat([sees, position[-1:] >= 0])[: levels.shape[2]]
    # A cap by similarity or an exemption may make it finer.
    assert ((most >= 1) & (most <= finest(config)))[..., sees].all()


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_the_most_important_block_is_read(name):
    config = CONFIGS.get(name) or OTHERS[name]
    for blocks, is_causal in product((1, 2, 3, 5), (False, True)):
        for keys in (blocks * config.block_n, (blocks - 1) * config.block_n + 1 + config.block_n // 3):
            check(config, keys, keys, is_causal=is_causal, impl="cpu")
    check(config, 40, 3 * config.block_n, is_causal=True, impl="reference")


@pytest.mark.parametrize("tokens", [16, 64, 77, 128])
@pytest.mark.parametrize("impl", ["cpu", "reference", "triton"])
def test_the_call_of_the_readme(tokens, impl):
    q, k, v = draw(tokens, tokens)
    assert (psa_attention(q, k, v, impl=impl) != 0).any(-1).all()


def test_nothing_else_gets_more_than_its_share():
    importance = torch.tensor([[[[0.1, 0.6, 0.3]]]])
    shares = {1: (0, 0.1), 2: (0.1, 0.2), 8: (0.2, 0.7), 0: (0.7, 1)}
    # Of three blocks, level 8 ends at floor(2.1): one block is level 1 anyway, and one level 8.
    assert select_levels(importance, shares, mode="topk").tolist() == [[[[0, 1, 8]]]]
    assert select_levels(importance, {1: (0, 0), 4: (0, 0.1), 0: (0.1, 1)}, mode="topk").tolist() == [[[[0, 4, 0]]]]


def test_shares_of_nothing_but_level_0_read_nothing():
    q, k, v = draw(60, 60)
    assert not psa_attention(q, k, v, PSAConfig(mask_ratios={0: (0, 1)})).any()


def test_a_first_query_that_would_read_nothing_reads_its_last_block():
    # 16 queries in blocks of 8 after 15 keys: their first sees keys 0 to 15, two whole blocks of 8, the other 24.
    levels = torch.tensor([[0, 0, 1, 0], [0, 2, 0, 1]], dtype=torch.int8)
    serve_first_queries(levels, Blocks(8, 8, 16, 31, is_causal=True))
    assert levels.tolist() == [[0, 1, 1, 0], [0, 2, 0, 1]]


@pytest.mark.parametrize(
    ("n", "mode", "is_causal"),
    [(32, "topk", False), (64, "topk", True), (32, "thresholdbound", True), (64, "thresholdbound", False)],
)
def test_a_share_for_means_of_whole_blocks(n, mode, is_causal):
    """Instead of dropping: the choice gives the rest of a row to the level, and every implementation reads it."""
    ratios = {1: (0.0, 0.2), 8: (0.2, 0.5), n: (0.5, 1.0)}
    config = PSAConfig(block_m=32, block_n=n, mask_ratios=ratios, mask_mode=mode, use_rearrange=False)
    q, k, v = draw(60, 6 * n + 7)
    out, levels = sparse_attention(q, k, v, config, is_causal=is_causal, impl="reference")
    assert set(levels.unique().tolist()) == ({0, 1, 8, n} if is_causal else {1, 8, n})
    for impl in ("torch", "cpu", "triton"):
        ours, chosen = sparse_attention(q, k, v, config, is_causal=is_causal, impl=impl)
        assert torch.equal(chosen, levels)
        torch.testing.assert_close(ours, out, rtol=1e-5, atol=1e-5)
