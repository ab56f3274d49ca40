"""Reuse between steps in pipelines: what a run does, and what it must not take from another."""

import gc

import pytest
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from peft import LoraConfig
from small_pipelines import (
    make_cogvideox_pipeline,
    make_video,
    make_video_from_video,
    make_wan_inputs,
    make_wan_pipeline,
)

from psa_triton import PSAConfig, apply_psa
from psa_triton.config import BudgetRow, Reuse
from psa_triton.integrations.reuse import MOST_ALIKE, KeptTensor

SPARSE = PSAConfig(block_m=32, block_n=32, mask_mode="budget", budget=0.3)
EVERY_SECOND = SPARSE.replace(reuse=Reuse(refresh_every=2))
ONCE = SPARSE.replace(reuse=Reuse(refresh_every=100))
TABLE = ONCE.replace(budget_table=[BudgetRow(start=0.0, budgets=(1.0, 0.3))])
PIPELINES = {
    "two passes": lambda: (make_wan_pipeline(), {"guidance_scale": 3.0}),
    "one pass": lambda: (make_wan_pipeline(), {}),
    "passes in one batch": lambda: (make_cogvideox_pipeline(), {"guidance_scale": 3.0}),
    "two transformers": lambda: (make_wan_pipeline(two_transformers=True), {"guidance_scale": 3.0}),
}


def ways(stats, layer=0):
    found = {}
    for record in stats.records:
        if record.layer == layer:
            found.setdefault(record.step, []).append(record.way)
    return found


@pytest.mark.parametrize("name", PIPELINES)
def test_steps_go_their_ways(name):
    pipe, more = PIPELINES[name]()
    with apply_psa(pipe, ONCE) as handle:
        make_video(pipe, steps=4, **more)
    second = next(step for step, timestep in enumerate(pipe.scheduler.timesteps) if timestep < 500)
    first_steps = [0, second] if name == "two transformers" else [0]
    expected = {step: ["refresh" if step in first_steps else "sparse"] for step in range(4)}
    assert ways(handle.stats()) == ways(handle.stats(), layer=1) == expected


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_takes_nothing_from_the_one_before(name):
    """Not of another prompt, other noise or another length; and a run is the same every time."""
    pipe, more = PIPELINES[name]()
    with apply_psa(pipe, EVERY_SECOND):
        alone = make_video(pipe, steps=4, **more)
        other = make_video(pipe, steps=4, seed=1, **more)
        make_video(pipe, steps=2, grid=(2, 5, 7), **more)
        assert torch.equal(make_video(pipe, steps=4, **more), alone)
        assert not torch.equal(alone, other)


def test_the_difference_brings_a_run_closer_to_dense():
    pipe = make_wan_pipeline()
    dense = make_video(pipe, steps=6, guidance_scale=3.0)
    found = {}
    for name, config in {"alone": SPARSE, "reuse": EVERY_SECOND, "once": ONCE}.items():
        with apply_psa(pipe, config):
            found[name] = float((make_video(pipe, steps=6, guidance_scale=3.0) - dense).norm() / dense.norm())
    assert found["reuse"] < found["once"] < found["alone"]


@pytest.mark.parametrize("prompt", ["a blue circle", "a red square moving left"])
def test_prompts_swapped_in_mid_run_refresh(prompt):
    """Embeddings that change in mid-run tell another pass, whose difference is not known yet."""
    pipe = make_wan_pipeline()
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=13)

    def swap(pipe, step, timestep, state):
        return {"prompt_embeds": embeds} if step == 1 else {}

    with apply_psa(pipe, ONCE) as handle:
        make_video(pipe, steps=4, callback_on_step_end=swap, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    third = "refresh" if "blue" in prompt else "sparse"  # equal embeddings are the same pass
    assert [way for (way,) in ways(handle.stats()).values()] == ["refresh", "sparse", third, "sparse"]


def test_a_failed_run_leaves_nothing():
    pipe = make_wan_pipeline()
    inputs = make_wan_inputs(timestep=torch.tensor([999.0]))
    pipe.scheduler.set_timesteps(4)
    first, second = pipe.scheduler.timesteps[:2]

    def forward(timestep, **more):
        pipe.transformer(**inputs | {"timestep": timestep[None]} | more)

    with torch.no_grad(), apply_psa(pipe, ONCE) as handle:
        forward(first)
        with pytest.raises(RuntimeError):
            forward(second, encoder_hidden_states=torch.zeros(1, 13, 7))
        forward(second)
    assert ways(handle.stats())[1][-1] == "refresh"


CACHES = {
    "blocks": lambda pipe: FirstBlockCacheConfig(threshold=1e9),
    "attention": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"\w*blocks\.\d+\.attn1"],
    ),
}


@pytest.mark.parametrize("cache", CACHES)
def test_what_a_cache_skipped_refreshes(cache):
    pipe = make_wan_pipeline()
    with apply_psa(pipe, ONCE) as handle:
        pipe.transformer.enable_cache(CACHES[cache](pipe))
        make_video(pipe, steps=5, guidance_scale=3.0)
    for layer in (0, 1):
        steps = list(ways(handle.stats(), layer))
        for step, (way,) in ways(handle.stats(), layer).items():
            assert way == ("sparse" if step and step - 1 in steps else "refresh")
    assert len(ways(handle.stats(), layer=1)) < 5
    assert kept_tensors() == 0


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_another_lora_refreshes():
    """Also one that is in other layers than the first."""
    pipe = make_wan_pipeline()
    for name, target in (("one", "attn1.to_q"), ("two", "attn1.to_v")):
        pipe.transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=[target]), name)
    pipe.transformer.set_adapters("one")

    def swap(pipe, step, timestep, state):
        pipe.transformer.set_adapters("one" if step < 1 else "two", weights=1.0 if step < 3 else 0.5)
        return {}

    with apply_psa(pipe, ONCE) as handle:
        make_video(pipe, steps=5, callback_on_step_end=swap)
    expected = ["refresh", "sparse", "refresh", "sparse", "refresh"]
    assert [way for (way,) in ways(handle.stats()).values()] == expected


def test_part_of_a_schedule():
    """A video made from another starts in the middle of the schedule."""
    from diffusers import WanVideoToVideoPipeline

    made = make_wan_pipeline()
    pipe = WanVideoToVideoPipeline(
        **{name: made.components[name] for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
    )
    with apply_psa(pipe, ONCE) as handle:
        make_video_from_video(pipe, steps=6, strength=0.5)
    found = [way for (way,) in ways(handle.stats()).values()]
    assert found == ["refresh"] + ["sparse"] * (len(found) - 1) and 2 <= len(found) < 6


def test_conditions_that_are_written_over_refresh():
    pipe = make_wan_pipeline()
    pipe.scheduler.set_timesteps(4)
    inputs = make_wan_inputs()
    with torch.no_grad(), apply_psa(pipe, ONCE) as handle:
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            if step == 2:
                inputs["encoder_hidden_states"].mul_(2)
            pipe.transformer(**inputs | {"timestep": timestep[None]})
    assert [way for (way,) in ways(handle.stats()).values()] == ["refresh", "sparse", "refresh", "sparse"]


def test_a_step_that_is_called_over_and_over_keeps_no_more():
    pipe = make_wan_pipeline()
    pipe.scheduler.set_timesteps(4)
    inputs = make_wan_inputs(timestep=pipe.scheduler.timesteps[:1])
    with torch.no_grad(), apply_psa(pipe, ONCE):
        kept = []
        for _ in range(3 * MOST_ALIKE):
            pipe.transformer(**inputs)
            kept.append(kept_tensors())
    assert kept[:2] == [2, 4] and max(kept) == kept[-1] == 2 * MOST_ALIKE + 2


def test_dense_layers_need_no_room(monkeypatch):
    pipe, room = make_wan_pipeline(), {}
    monkeypatch.setattr("psa_triton.integrations.reuse.kept_bytes", lambda *_, layers, **__: room.setdefault(layers, 0))
    for config, dense_layers in ((ONCE, []), (ONCE, [0]), (TABLE, [])):
        with apply_psa(pipe, config, dense_layers=dense_layers):
            make_video(pipe, steps=3)
        assert list(room) == [2 - bool(dense_layers or config is TABLE)]
        room.clear()


def test_layers_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"reuse.layers: expected indexes from 0 to 1, got \[7\]"):
        apply_psa(make_wan_pipeline(), SPARSE.replace(reuse=Reuse(refresh_every=2, layers=(0, 7))))


def kept_tensors():
    return sum(type(thing) is KeptTensor for thing in gc.get_objects())


@pytest.mark.parametrize("dense_last_steps", [0, 1])
def test_nothing_is_kept_after_the_last_step(dense_last_steps):
    pipe = make_wan_pipeline()
    config = SPARSE.replace(reuse=Reuse(refresh_every=2, sparse_every=2))
    with apply_psa(pipe, config, dense_last_steps=dense_last_steps):
        make_video(pipe, steps=3, guidance_scale=3.0)
        assert kept_tensors() == 0


def test_what_a_run_kept_that_was_broken_off_is_gone_in_the_next_warm_up():
    pipe = make_wan_pipeline()

    def stop(pipe, step, timestep, state):
        pipe._interrupt = step == 1
        return {}

    with apply_psa(pipe, ONCE.replace(warmup_steps=1)):
        make_video(pipe, steps=4, guidance_scale=3.0, callback_on_step_end=stop)
        assert kept_tensors() == 4
        make_video(pipe, steps=1, guidance_scale=3.0)
        assert kept_tensors() == 0


def test_what_the_first_transformer_kept_is_gone_when_the_second_runs():
    pipe = make_wan_pipeline(two_transformers=True)
    kept = []

    def count(pipe, step, timestep, state):
        kept.append(kept_tensors())
        return {}

    with apply_psa(pipe, ONCE) as handle:
        make_video(pipe, steps=4, guidance_scale=3.0, callback_on_step_end=count)
    assert {record.transformer for record in handle.stats().records} == {"transformer", "transformer_2"}
    assert kept == [4, 4, 4, 0]  # two layers in two passes


def test_costs_and_errors_are_told():
    pipe = make_wan_pipeline()
    config = SPARSE.replace(reuse=Reuse(refresh_every=3, sparse_every=2), probe=0.02)
    with apply_psa(pipe, config) as handle:
        make_video(pipe, steps=3, guidance_scale=3.0)
    stats = handle.stats()
    by_way = {record.way: record for record in stats.records if record.layer == 0}
    refresh, broadcast, sparse = (by_way[way] for way in ("refresh", "broadcast", "sparse"))
    probe = 8 / 105
    assert refresh.density == pytest.approx(1 + sparse.density) and broadcast.density == 0
    assert broadcast.density_with_estimation == pytest.approx(probe)
    assert sparse.density_with_estimation == pytest.approx(sparse.density + probe)  # levels of the refresh
    assert refresh.measured_error is None and broadcast.measured_error > sparse.measured_error > 0
    assert 0 < sparse.measured_error_standard_error < sparse.measured_error
    assert stats.summary.ways == {"refresh": 4, "sparse": 4, "broadcast": 4}
    assert stats.summary.largest_measured_error >= stats.summary.measured_error > 0
    assert stats.summary.run_density_with_estimation > stats.summary.run_density


def test_a_probe_alone_changes_nothing_but_tells_the_error():
    pipe = make_wan_pipeline()
    with apply_psa(pipe, SPARSE):
        expected = make_video(pipe)
    with apply_psa(pipe, SPARSE.replace(probe=0.02)) as handle:
        assert torch.equal(make_video(pipe), expected)
    assert all(record.measured_error > 0 and record.way == "sparse" for record in handle.stats().records)


@pytest.mark.parametrize(("bound", "expected"), [(1e-9, {"refresh"}), (1e9, {"refresh", "broadcast"})])
def test_max_error(bound, expected):
    pipe = make_wan_pipeline()
    dense = make_video(pipe, guidance_scale=3.0)
    with apply_psa(pipe, SPARSE.replace(warmup_steps=1), max_error=bound) as handle:
        video = make_video(pipe, guidance_scale=3.0)
    stats = handle.stats()
    assert set(stats.summary.ways) == expected and stats.summary.dense_calls == 0
    assert torch.allclose(video, dense, atol=1e-4) == (bound < 1)


def test_reuse_has_no_gradient():
    pipe = make_wan_pipeline()
    pipe.scheduler.set_timesteps(2)
    with apply_psa(pipe, ONCE), pytest.raises(ValueError, match="reuse: what is kept .* has no gradient"):
        pipe.transformer(**make_wan_inputs(timestep=pipe.scheduler.timesteps[:1]))
