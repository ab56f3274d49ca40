"""What the handle reports: per layer and step, and in sum."""

import json
import logging

import pytest
import torch
from small_pipelines import SPARSE, TEXT_TOKENS, make_cogvideox_pipeline, make_video, make_wan_pipeline

from psa_triton.config import PSAConfig
from psa_triton.importance import estimation_cost
from psa_triton.integrations.diffusers import PSAStats, apply_psa
from psa_triton.integrations.diffusers.stats import CallKey
from psa_triton.integrations.stats import Recorder, Tally


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


def test_seconds_only_if_asked():
    pipe = make_wan_pipeline()
    with apply_psa(pipe, SPARSE.replace(warmup_steps=1), time_layers=True) as handle:
        make_video(pipe)
    timed = handle.stats()
    assert all(record.seconds > 0 for record in timed.records)
    assert timed.summary.sparse_seconds == pytest.approx(sum(r.seconds for r in timed.records if r.sparse))
    assert timed.summary.dense_seconds == pytest.approx(sum(r.seconds for r in timed.records if not r.sparse))
    with apply_psa(pipe, SPARSE) as handle:
        make_video(pipe)
    untimed = handle.stats()
    assert {record.seconds for record in untimed.records} == {None}
    assert untimed.summary.sparse_seconds is None and untimed.summary.dense_seconds is None


def test_as_dict_survives_json():
    pipe = make_wan_pipeline()
    with apply_psa(pipe, SPARSE, time_layers=True) as handle:
        empty = handle.stats().as_dict()
        make_video(pipe)
        full = handle.stats().as_dict()
    assert json.loads(json.dumps(empty)) == empty
    assert json.loads(json.dumps(full)) == full
    assert empty["summary"]["run_density"] is None and empty["records"] == []
    assert full["records"][0]["layer"] == 0


def test_reset_forgets():
    pipe = make_wan_pipeline()
    with apply_psa(pipe, SPARSE) as handle:
        fresh = handle.stats()
        make_video(pipe)
        assert handle.stats() != fresh
        handle.reset()
        assert handle.stats() == fresh


def test_verbose_logs_each_sparse_call(caplog):
    pipe = make_wan_pipeline()
    with (
        caplog.at_level(logging.INFO, logger="psa_triton"),
        apply_psa(pipe, SPARSE.replace(verbose=True, warmup_steps=2)),
    ):
        make_video(pipe, steps=3)
    messages = [record.getMessage() for record in caplog.records if record.name == "psa_triton"]
    assert len(messages) == 2
    assert messages[0].startswith("transformer layer 0 step 2: 105 tokens, density 0.")


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
