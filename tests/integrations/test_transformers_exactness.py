"""With every level at 1, logits and tokens are those of SDPA."""

from functools import cache

import pytest
import small_language_models as small
import torch
from small_language_models import logits
from transformers import DynamicCache, StaticCache

from psa_triton import PSAConfig, apply_psa

FULL = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)}, use_rearrange=False)
SPARSE = PSAConfig(
    block_m=32,
    block_n=32,
    mask_ratios={1: (0, 0.2), 2: (0.2, 0.4), 4: (0.4, 0.6), 0: (0.6, 1)},
    importance="antidiagonal",
    keep_first_block=True,
    use_rearrange=False,
)
FAMILIES = {
    "llama": (small.llama, small.text_inputs),
    "qwen2": (small.qwen2, small.text_inputs),
    "qwen3": (small.qwen3, small.text_inputs),
    "qwen2.5-vl": (small.qwen2_5_vl, small.qwen_video_inputs),
    "qwen2-vl": (small.qwen2_vl, small.qwen_video_inputs),
    "qwen3-vl": (small.qwen3_vl, small.qwen3_video_inputs),
    "internvl": (small.internvl, small.internvl_image_inputs),
    "llava-onevision": (small.llava_onevision, small.llava_video_inputs),
}
EACH = pytest.mark.parametrize("family", FAMILIES)


@cache
def case(family):
    make, inputs = FAMILIES[family]
    return small.make_model(make), inputs()


@torch.no_grad()
def generate(model, inputs, **options):
    attend_to_all = torch.ones_like(inputs["input_ids"])
    length = {"min_new_tokens": 6, "max_new_tokens": 6}
    return model.generate(**inputs, attention_mask=attend_to_all, do_sample=False, **length, **options)


@EACH
def test_exact_at_level_1_and_another_answer_where_blocks_are_dropped(family):
    model, inputs = case(family)
    dense = logits(model, inputs)
    with apply_psa(model, FULL) as handle:
        torch.testing.assert_close(logits(model, inputs), dense, rtol=1e-5, atol=2e-5)
    assert (handle.stats().summary.sparse_calls, handle.stats().summary.dense_calls) == (2, 0)
    with apply_psa(model, SPARSE) as handle:
        assert (logits(model, inputs) - dense).abs().max() > 0.01
    assert 0.3 < handle.stats().summary.sparse_density < 0.8


@EACH
def test_tokens_are_those_of_sdpa(family):
    model, inputs = case(family)
    dense = generate(model, inputs)
    with apply_psa(model, FULL) as handle:
        assert torch.equal(generate(model, inputs), dense)
        summary = handle.stats().summary
    assert summary.sparse_calls == 2
    assert summary.dense_reasons == {"decode": 2 * 5}


@pytest.mark.parametrize("lengths", [(100, 100, 100), (96, 204), (200, 99, 1)], ids=lambda x: "+".join(map(str, x)))
@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache], ids=["dynamic", "static"])
@pytest.mark.parametrize("preset", [FULL, "baseline"], ids=["full", "dense-preset"])
def test_prefill_in_chunks(lengths, make_cache, preset):
    model, inputs = case("llama")
    dense = logits(model, inputs)
    room = {"max_cache_len": 384} if make_cache is StaticCache else {}
    cache = make_cache(config=model.config, **room)
    chunks = inputs["input_ids"].split(lengths, dim=1)
    with apply_psa(model, preset) as handle:
        found = torch.cat([logits(model, {"input_ids": ids}, **small.on_cache(model, cache)) for ids in chunks], dim=1)
        records = handle.stats().records
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=2e-5)
    keys = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    sizes = {(n, None if n == 1 else k) for n, k in zip(lengths, keys, strict=True)}
    assert {(record.queries, record.keys) for record in records} == sizes
    assert all(record.sparse == (preset is FULL and record.queries > 1) for record in records)


@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache], ids=["dynamic", "static"])
@pytest.mark.parametrize("preset", [FULL, "baseline"], ids=["full", "dense-preset"])
def test_a_second_turn_where_the_first_saw_both_ways(make_cache, preset):
    """PaliGemma's attention says of itself that it is not causal; what follows on the cache is all the same."""
    model, inputs = small.make_model(small.paligemma), small.paligemma_inputs()
    turn = {"input_ids": small.text_inputs(60)["input_ids"]}
    room = {"max_cache_len": 256} if make_cache is StaticCache else {}

    def second():
        cache = small.on_cache(model, make_cache(config=model.config.get_text_config(), **room))
        logits(model, inputs, **cache)
        return logits(model, turn, **cache)

    dense = second()
    with apply_psa(model, preset, min_tokens=0):
        torch.testing.assert_close(second(), dense, rtol=1e-5, atol=2e-5)


def test_chunks_choose_their_blocks_as_the_whole_prompt_does():
    """Chunks that end where blocks end see the same keys and queries: so levels, and logits, are the same."""
    model, inputs = case("llama")
    with apply_psa(model, SPARSE.replace(mask_mode="thresholdbound")):
        whole = logits(model, inputs)
        cache = DynamicCache(config=model.config)
        chunks = inputs["input_ids"].split((128, 172), dim=1)
        found = torch.cat([logits(model, {"input_ids": ids}, **small.on_cache(model, cache)) for ids in chunks], dim=1)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 100},
        {"use_cache": False},
        {"num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ways_to_generate(options):
    model, inputs = case("qwen2")
    dense = generate(model, inputs, **options)
    with apply_psa(model, FULL) as handle:
        assert torch.equal(generate(model, inputs, **options), dense)
        summary = handle.stats().summary
    assert summary.sparse_calls >= 2
    assert "attention mask" not in summary.dense_reasons


def test_low_precision():
    model = small.make_model(small.llama).to(torch.bfloat16)
    inputs = small.text_inputs()
    dense = logits(model, inputs)
    with apply_psa(model, FULL) as handle:
        found = logits(model, inputs)
        assert handle.stats().summary.sparse_calls == 2
    exact = logits(small.make_model(small.llama), inputs)
    assert (found - exact).norm() < 1.2 * (dense - exact).norm()


def test_autocast():
    """Rotary embeddings leave queries and keys in float32, values come in bfloat16."""
    model, inputs = small.make_model(small.llama), small.text_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        dense = logits(model, inputs)
        with apply_psa(model, FULL) as handle:
            torch.testing.assert_close(logits(model, inputs), dense, rtol=0.02, atol=0.02)
            assert handle.stats().summary.sparse_calls == 2


@torch.no_grad()
def test_compiled_models_run_and_count_the_same():
    model, inputs = small.make_model(small.llama), small.text_inputs()
    with apply_psa(model, SPARSE) as handle:
        expected = model(**inputs).logits
        handle.reset()
        found = torch.compile(model, backend="aot_eager")(**inputs).logits
        assert handle.stats().summary.sparse_calls == 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_handle_the_whole_prefill_compiles_to_one_graph():
    model, inputs = small.make_model(small.llama), small.text_inputs(900)
    model.set_attn_implementation("psa")
    expected = model(**inputs).logits
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
