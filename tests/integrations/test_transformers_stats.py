"""What the statistics say is what ran."""

import json
import logging

import pytest
import small_language_models as small
import torch
from transformers import DynamicCache

from psa_triton import PSAConfig
from psa_triton.integrations.transformers import apply_psa

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


def test_density_by_hand():
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


def test_reset_and_json():
    model = small.make_model(small.llama)
    with apply_psa(model, DIAGONAL) as handle:
        assert handle.stats().records == ()
        assert handle.stats().summary.run_density is None
        generate(model, tokens=2)
        written = json.loads(json.dumps(handle.stats().as_dict()))
        assert written["summary"]["dense_reasons"] == {"decode": 2}
        assert [record["sparse"] for record in written["records"]] == [True, True, False, False]
        handle.reset()
        assert handle.stats().records == ()


def test_seconds_if_asked_for():
    model = small.make_model(small.llama)
    with apply_psa(model, DIAGONAL, time_layers=True) as handle:
        generate(model, tokens=2)
        stats = handle.stats()
    assert all(record.seconds is not None and record.seconds > 0 for record in stats.records)
    assert stats.summary.sparse_seconds == pytest.approx(sum(r.seconds or 0 for r in stats.records if r.sparse))
    assert stats.summary.dense_seconds == pytest.approx(sum(r.seconds or 0 for r in stats.records if not r.sparse))


def test_verbose_logs_sparse_calls(caplog):
    model = small.make_model(small.llama)
    with caplog.at_level(logging.INFO, "psa_triton"), apply_psa(model, DIAGONAL.replace(verbose=True)):
        generate(model, tokens=2)
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("layer 1: 300 queries, 300 keys, density 0.")
