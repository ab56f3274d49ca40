"""What the handle reports: per call and in sum, of diffusion and of language models."""

import json
import logging

import pytest
import small_language_models as small
import torch
from small_pipelines import SPARSE, TEXT_TOKENS, make_cogvideox_pipeline, make_video, make_wan_pipeline
from transformers import DynamicCache

from psa_triton import PSAConfig, apply_psa
from psa_triton.importance import estimation_cost
from psa_triton.integrations.diffusers.stats import CallKey, PSAStats
from psa_triton.integrations.stats import Recorder, Tally

WARM = SPARSE.replace(warmup_steps=1)
# Of 10 blocks of 32, a row of which sees 1 to 10, only the diagonal one and the first are read.
DIAGONAL = PSAConfig(
    block_m=32,
    block_n=32,
    mask_ratios={0: (0, 1)},
    keep_first_block=True,
    use_rearrange=False,
    importance="antidiagonal",
)
ESTIMATION = 1 / 16
"""Multiply-adds of `antidiagonal` as a share of attention's: one product in eight of QK^T, none of PV."""


@torch.no_grad()
def run(model, inputs, **options):
    model(**inputs, **options)


@torch.no_grad()
def generate(model, tokens):
    inputs = small.text_inputs() | {"attention_mask": torch.ones(1, 300, dtype=torch.long)}
    model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)


def mean_over_queries(queries):
    """Keys read / keys seen with `DIAGONAL`: the first 32 keys, and those of the query's own block up to itself."""
    shares = []
    for query in queries:
        own = query % 32 + 1
        shares.append((own if query < 32 else 32 + own) / (query + 1))
    return sum(shares) / len(shares)


BOTH = {
    "diffusers": (make_wan_pipeline, WARM, make_video, "transformer layer 0 step 1: 105 tokens, density 0."),
    "transformers": (
        *(lambda: small.make_model(small.llama), DIAGONAL, lambda model: generate(model, tokens=2)),
        "layer 0: 300 queries, 300 keys, density 0.",
    ),
}
both = pytest.mark.parametrize(("make", "config", "call", "words"), BOTH.values(), ids=BOTH)


@both
def test_seconds_only_if_asked(make, config, call, words):
    model = make()
    for timed in (True, False):
        with apply_psa(model, config, time_layers=timed) as handle:
            call(model)
        stats = handle.stats()
        of_kind = [[record.seconds for record in stats.records if record.sparse == sparse] for sparse in (True, False)]
        found = [stats.summary.sparse_seconds, stats.summary.dense_seconds]
        assert found == (pytest.approx([sum(seconds) for seconds in of_kind]) if timed else [None, None])
        assert all(record.seconds > 0 if timed else record.seconds is None for record in stats.records)


@both
def test_reset_forgets_and_all_survives_json(make, config, call, words):
    model = make()
    with apply_psa(model, config) as handle:
        fresh = handle.stats()
        assert fresh.as_dict()["summary"]["run_density"] is None and fresh.records == ()
        call(model)
        full = handle.stats().as_dict()
        assert json.loads(json.dumps(full)) == full and full["records"][0]["layer"] == 0
        handle.reset()
        assert handle.stats() == fresh


@both
def test_verbose_logs_each_sparse_call(make, config, call, words, caplog):
    model = make()
    with caplog.at_level(logging.INFO, "psa_triton"), apply_psa(model, config.replace(verbose=True)) as handle:
        call(model)
    messages = [record.getMessage() for record in caplog.records if record.name == "psa_triton"]
    assert len(messages) == handle.stats().summary.sparse_calls
    assert messages[0].startswith(words)


def test_records_of_a_run():
    pipe = make_wan_pipeline()
    with apply_psa(pipe, SPARSE.replace(warmup_steps=1)) as handle:
        make_video(pipe, steps=2, guidance_scale=3.0)
    records = handle.stats().records
    assert [(r.transformer, r.layer, r.step, r.tokens, r.sparse, r.reason, r.calls) for r in records] == [
        ("transformer", 0, 0, 105, False, "warm-up", 2),
        ("transformer", 1, 0, 105, False, "warm-up", 2),
        ("transformer", 0, 1, 105, True, None, 2),
        ("transformer", 1, 1, 105, True, None, 2),
    ]
    assert [r.density for r in records[:2]] == [1.0, 1.0]


def test_density_is_what_was_read():
    """128 tokens in 4 key blocks of 32, floor(4 * .5) = 2 of them read in full: half of the keys."""
    pipe = make_wan_pipeline()
    half = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.5), 0: (0.5, 1)}, warmup_steps=1)
    with apply_psa(pipe, half) as handle:
        make_video(pipe, steps=2, grid=(4, 4, 8))
    cost = estimation_cost(half.importance, 32, 32)
    sparse = [record for record in handle.stats().records if record.sparse]
    assert [record.density for record in sparse] == [0.5, 0.5]
    assert [record.density_with_estimation for record in sparse] == pytest.approx([0.5 + cost] * 2)
    summary = handle.stats().summary
    assert summary.sparse_density == 0.5
    assert summary.sparse_density_with_estimation == pytest.approx(0.5 + cost)
    assert summary.run_density == 0.75
    assert summary.run_density_with_estimation == pytest.approx(0.75 + cost / 2)


def test_density_counts_the_exempt_text():
    """13 text and 105 visual tokens in 4 blocks, of which each row may choose floor(4 * .3) = 1.

    The text makes key block 0 and query block 0 level 1: the first 32 queries read all of the 118 keys, the other 86
    read the 32 keys of block 0, and 32 more unless that is the one they chose.
    """
    pipe = make_cogvideox_pipeline()
    with apply_psa(pipe, SPARSE) as handle:
        make_video(pipe, steps=2)
    for record in handle.stats().records:
        assert record.tokens == TEXT_TOKENS + 105
        assert (32 * 118 + 86 * 32) / 118**2 - 1e-6 < record.density < (32 * 118 + 86 * 64) / 118**2 + 1e-6


@pytest.mark.parametrize("use_rearrange", [True, False])
def test_tokens_are_put_in_order_in_each_call(use_rearrange):
    """q, k, v and the output; CogVideoX runs its two layers once a step on both halves of the guidance."""
    pipe = make_cogvideox_pipeline()
    with apply_psa(pipe, SPARSE.replace(warmup_steps=1, use_rearrange=use_rearrange)) as handle:
        make_video(pipe, steps=3, guidance_scale=3.0)
    summary = handle.stats().summary
    assert (summary.forwards, summary.sparse_calls, summary.gathers) == (3, 4, 4 * 4 if use_rearrange else 0)


def recorded(*calls, timed=True):
    recorder = Recorder(PSAStats.of, timed)
    for key, density, seconds in calls:
        recorder.add(key, key.tokens**2, Tally(density, 0.1 if key.way else 0.0), seconds)
    return recorder.stats()


def test_summary_weighs_calls_by_their_work():
    """One dense call over 10 tokens and two sparse ones over 20: work 100 and 2 * 400."""
    dense = CallKey("transformer", 0, 0, 10, False, None, "warm-up")
    sparse = CallKey("transformer", 0, 1, 20, True, "sparse", None)
    stats = recorded((dense, 1.0, 1.0), (sparse, torch.tensor(0.2), 2.0), (sparse, torch.tensor(0.4), 2.0))
    assert [(r.calls, r.seconds) for r in stats.records] == [(1, 1.0), (2, 4.0)]
    assert stats.records[1].density == pytest.approx(0.3)
    assert stats.summary.sparse_density == pytest.approx(0.3)
    assert stats.summary.run_density == pytest.approx((100 * 1.0 + 800 * 0.3) / 900)
    assert stats.summary.run_density_with_estimation == pytest.approx((100 * 1.0 + 800 * 0.4) / 900)
    assert (stats.summary.dense_seconds, stats.summary.sparse_seconds) == (1.0, 4.0)


def test_memory_is_bounded_by_layers_and_steps():
    keys = [CallKey("transformer", call % 2, call % 5, 64, True, "sparse", None) for call in range(1000)]
    stats = recorded(*((key, torch.tensor(0.5), 0.0) for key in keys), timed=False)
    assert len(stats.records) == 10
    assert stats.summary.sparse_calls == 1000


def test_density_of_a_prefill_by_hand():
    model = small.make_model(small.llama)
    with apply_psa(model, DIAGONAL) as handle:
        run(model, small.text_inputs())
        stats = handle.stats()
    expected = mean_over_queries(range(300))
    assert [(r.part, r.layer, r.queries, r.keys, r.sparse, r.reason, r.calls) for r in stats.records] == [
        ("text", 0, 300, 300, True, None, 1),
        ("text", 1, 300, 300, True, None, 1),
    ]
    for record in stats.records:
        assert record.work == 300 * 301 // 2
        assert record.density == pytest.approx(expected, abs=1e-6)
        assert record.density_with_estimation == pytest.approx(expected + ESTIMATION, abs=1e-6)
        assert record.seconds is None
    assert stats.summary.sparse_density == pytest.approx(expected, abs=1e-6)


def test_density_of_chunks_is_weighed_by_their_work():
    model = small.make_model(small.llama)
    cache = DynamicCache(config=model.config)
    with apply_psa(model, DIAGONAL) as handle:
        for ids in small.text_inputs()["input_ids"].split((128, 172), dim=1):
            run(model, {"input_ids": ids}, **small.on_cache(model, cache))
        stats = handle.stats()
    first, second = mean_over_queries(range(128)), mean_over_queries(range(128, 300))
    assert [record.density for record in stats.records if record.layer == 0] == pytest.approx([first, second])
    work = 128 * 129 // 2, 300 * 301 // 2 - 128 * 129 // 2
    assert [record.work for record in stats.records if record.layer == 0] == list(work)
    assert stats.summary.prefill_density == pytest.approx((first * work[0] + second * work[1]) / sum(work))


def test_decode_steps_are_added_up_and_left_out_of_the_prefill():
    model = small.make_model(small.llama)
    with apply_psa(model, DIAGONAL) as handle:
        generate(model, tokens=5)
        stats = handle.stats()
    decode = [record for record in stats.records if record.reason == "decode"]
    assert [(r.layer, r.queries, r.keys, r.calls, r.work, r.density) for r in decode] == [
        (layer, 1, None, 4, 301 + 302 + 303 + 304, 1.0) for layer in (0, 1)
    ]
    summary = stats.summary
    assert summary.prefill_density == summary.sparse_density
    prefill, after = 300 * 301 // 2, 301 + 302 + 303 + 304
    expected = (summary.prefill_density * prefill + after) / (prefill + after)
    assert summary.run_density == pytest.approx(expected)
