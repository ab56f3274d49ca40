"""Padded batches: the padding is left out of each prompt by itself, as if that ran alone."""

from functools import cache

import pytest
import small_language_models as small
import torch
from transformers import DynamicCache, StaticCache

from psa_triton import PSAConfig, apply_psa

FULL = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)}, use_rearrange=False)
SPARSE = FULL.replace(
    mask_ratios={1: (0, 0.3), 2: (0.3, 0.5), 8: (0.5, 0.7), 0: (0.7, 1)}, mask_mode="topk", keep_first_block=True
)
LENGTHS = (300, 231, 130)
SIDES = pytest.mark.parametrize("side", ["left", "right"])


@cache
def model(family):
    return small.make_model(getattr(small, family))


def prompts(lengths=LENGTHS):
    return [small.text_inputs(tokens, seed=i)["input_ids"] for i, tokens in enumerate(lengths)]


def padded(side, lengths=LENGTHS):
    ids, masks = [], []
    for prompt in prompts(lengths):
        room = max(lengths) - prompt.shape[1]
        place = (room, 0) if side == "left" else (0, room)
        ids.append(torch.nn.functional.pad(prompt, place, value=small.VOCABULARY - 1))
        masks.append(torch.nn.functional.pad(torch.ones_like(prompt), place))
    return {"input_ids": torch.cat(ids), "attention_mask": torch.cat(masks)}


@torch.no_grad()
def logits(inputs, family="llama", **options):
    return model(family)(**inputs, **options).logits


def assert_each_as_alone(found, mask, family="llama"):
    """`found` are the logits of the prompts: those of tokens are what SDPA gives each prompt by itself."""
    for prompt, ours, is_token in zip(prompts(), found, mask.bool(), strict=True):
        alone = logits({"input_ids": prompt}, family)[0]
        torch.testing.assert_close(ours[is_token], alone, rtol=1e-4, atol=1e-4)


@SIDES
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_each_prompt_is_as_it_is_alone(side, family):
    inputs = padded(side)
    with apply_psa(model(family), FULL) as handle:
        found = logits(inputs, family)
        summary = handle.stats().summary
    assert (summary.sparse_calls, summary.dense_calls) == (2, 0)
    assert summary.sparse_density == pytest.approx(1)
    assert_each_as_alone(found, inputs["attention_mask"], family)


@SIDES
@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache], ids=["dynamic", "static"])
def test_prefill_in_chunks(side, make_cache):
    inputs = padded(side)
    room = {"max_cache_len": 384} if make_cache is StaticCache else {}
    past, found, end = make_cache(config=model("llama").config, **room), [], 0
    with apply_psa(model("llama"), FULL) as handle:
        for ids in inputs["input_ids"].split((128, 172), dim=1):
            end += ids.shape[1]
            chunk = {"input_ids": ids, "attention_mask": inputs["attention_mask"][:, :end]}
            found.append(logits(chunk, **small.on_cache(model("llama"), past)))
        records = handle.stats().records
    assert {(record.keys, record.sparse) for record in records} == {(128, True), (300, True)}
    assert_each_as_alone(torch.cat(found, dim=1), inputs["attention_mask"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 100},
        {"use_cache": False},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@torch.no_grad()
def test_generate(options):
    length = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}
    inputs = padded("left")
    with apply_psa(model("qwen2"), FULL) as handle:
        found = model("qwen2").generate(**inputs, **length, **options)[:, -4:]
        summary = handle.stats().summary
    assert summary.sparse_calls >= 2 and "attention mask" not in summary.dense_reasons
    for prompt, ours in zip(prompts(), found, strict=True):
        mask = torch.ones_like(prompt)
        alone = model("qwen2").generate(input_ids=prompt, attention_mask=mask, **length)[0, -4:]
        assert torch.equal(ours, alone)


def test_levels_and_logits_are_those_of_the_prompt_alone_where_blocks_are():
    """The second prompt is padded by 96 tokens, three blocks, on the left."""
    inputs = padded("left", (300, 204))
    with apply_psa(model("llama"), SPARSE) as handle:
        found = logits(inputs)[1, 96:]
        density = handle.stats().summary.sparse_density
        handle.reset()
        first, second = prompts((300, 204))
        alone = logits({"input_ids": second})[0]
        logits({"input_ids": first})
        density_alone = [record.density for record in handle.stats().records]
    assert (alone - logits({"input_ids": second})[0]).abs().max() > 0.01
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
    assert density == pytest.approx(sum(density_alone) / len(density_alone), rel=1e-5)


def test_gradients_are_those_of_sdpa():
    inputs = padded("right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    trained = small.make_model(small.llama).train()

    def gradients():
        trained.zero_grad()
        trained(**inputs, labels=labels).loss.backward()
        return [p.grad.clone() for p in trained.parameters() if p.grad is not None]

    dense = gradients()
    with apply_psa(trained, FULL) as handle:
        found = gradients()
        assert handle.stats().summary.sparse_calls == 2
    for ours, theirs in zip(found, dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_continuous_batching_is_refused():
    """By transformers, which knows what can work on its paged cache."""
    with apply_psa(model("llama"), FULL), pytest.raises(ValueError, match="psa.* is not supported"):
        model("llama").generate_batch([prompt[0].tolist() for prompt in prompts()])
