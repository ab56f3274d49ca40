"""From how many tokens on sparse attention pays, by config and by what the processor can do."""

import math

import pytest
import torch

from psa_triton import PSAConfig
from psa_triton.integrations import break_even
from psa_triton.presets import load_presets_file

READS_A_TENTH = PSAConfig(mask_mode="topk", mask_ratios={1: (0, 0.1), 0: (0.1, 1)})


@pytest.fixture(params=["plain", "fast products", "tiles"], autouse=True)
def processor(request, monkeypatch):
    monkeypatch.setattr(
        break_even,
        "products_outrun_attention",
        lambda dtype: dtype == torch.bfloat16 and request.param == "fast products",
    )
    monkeypatch.setattr(break_even, "has_tiles", lambda: request.param == "tiles")
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_more_to_read_pays_later_and_too_much_never(dtype):
    def of(share):
        config = READS_A_TENTH.replace(mask_ratios={1: (0, share), 0: (share, 1)})
        return break_even.break_even(config, dtype, "cpu")

    assert 256 < of(0.05) < of(0.1) < of(0.2) < math.inf
    assert of(0.98) == math.inf
    assert break_even.break_even(READS_A_TENTH, dtype, "cuda") == 0


def test_what_costs_more_pays_later():
    plain = break_even.break_even(READS_A_TENTH, torch.bfloat16, "cpu")
    small_blocks = READS_A_TENTH.replace(block_m=32)
    assert break_even.break_even(small_blocks, torch.bfloat16, "cpu") > plain
    assert break_even.break_even(READS_A_TENTH, torch.bfloat16, "cpu", is_causal=True) > plain
    assert break_even.break_even(READS_A_TENTH, torch.bfloat16, "cpu", prefix_tokens=200) > plain
    capped = PSAConfig(block_n=128, mask_mode="topk", mask_ratios={1: (0, 0.1), 8: (0.1, 0.3), 0: (0.3, 1)})
    assert break_even.typical_density(capped.replace(use_sim_mask=True)) == pytest.approx(0.3)
    assert break_even.typical_density(capped.replace(use_sim_mask=False)) == pytest.approx(0.125)


def test_layers_that_are_dense_anyway_do_not_count():
    config = load_presets_file().sections["tiny-wan"].attention_configs["psa_budget"].config()
    assert 1.0 in config.budget_table[0].budgets
    assert break_even.typical_density(config) == pytest.approx(config.budget)
    everything = config.replace(budget_table=[{"start": 0.0, "budgets": [1.0, 1.0]}])
    assert break_even.break_even(everything, torch.float32, "cpu") == math.inf


def test_instructions_for_bfloat16_make_it_pay_sooner_unless_dense_attention_has_them_too(processor):
    narrow, wide = (break_even.break_even(READS_A_TENTH, dtype, "cpu") for dtype in (torch.bfloat16, torch.float32))
    assert (narrow > wide) - (narrow < wide) == {"plain": 0, "fast products": -1, "tiles": 1}[processor]


def test_presets_for_video_pay_within_their_models_lengths(processor):
    most, longest = (0.2, 16_384) if processor == "tiles" else (1.0, 8192)
    for name, section in load_presets_file().sections.items():
        for preset in section.attention_configs.values():
            config = preset.config()
            if config is None or not name.startswith(("Wan", "CogVideo")):
                continue
            if break_even.typical_density(config) <= most:
                assert break_even.break_even(config, torch.bfloat16, "cpu", prefix_tokens=226) < longest
