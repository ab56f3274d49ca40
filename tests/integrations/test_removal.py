"""`remove_psa`, and copies: attached as a whole, independent of the original, detached without a handle."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import small_language_models as small
import torch
from diffusers import AutoencoderKLWan
from small_language_models import logits
from small_pipelines import (
    SPARSE,
    is_clean,
    make_cogvideox_inputs,
    make_cogvideox_pipeline,
    make_cogvideox_transformer,
    make_video,
    make_wan_inputs,
    make_wan_modular_pipeline,
    make_wan_pipeline,
    make_wan_transformer,
)

from psa_triton import apply_psa, remove_psa

WARM = SPARSE.replace(warmup_steps=1)
CAUSAL = SPARSE.replace(use_rearrange=False)
PIPELINES = pytest.mark.parametrize("make", [make_wan_pipeline, make_cogvideox_pipeline], ids=["wan", "cogvideox"])


def reloaded(model):
    """Saved by torch and loaded."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = pytest.mark.parametrize(
    "copied", [copy.deepcopy, reloaded, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "save", "pickle"]
)


@PIPELINES
def test_a_copied_pipeline(make):
    """It makes the same videos, at its own steps; it counts for itself, and each is detached alone."""
    pipe = make()
    dense = make_video(pipe)
    told = []
    handle = apply_psa(pipe, WARM, on_levels=told.append)
    sparse = make_video(pipe)
    before, heard = handle.stats(), len(told)
    assert heard == 2 * 2
    twin = copy.deepcopy(pipe)
    twin.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert torch.equal(make_video(twin), sparse)
    assert (handle.stats(), len(told)) == (before, heard)
    handle.remove()
    assert torch.equal(make_video(pipe), dense)
    assert is_clean(pipe.transformer) and not is_clean(twin.transformer)
    assert torch.equal(make_video(twin), sparse)
    remove_psa(twin)
    assert is_clean(twin.transformer)
    assert torch.equal(make_video(twin), dense)


COPIED = {
    "wan": (make_wan_transformer, lambda model: model(**make_wan_inputs()).sample),
    "cogvideox": (make_cogvideox_transformer, lambda model: model(**make_cogvideox_inputs()).sample),
    "llama": (lambda: small.make_model(small.llama), logits),
    "qwen2.5-vl": (lambda: small.make_model(small.qwen2_5_vl), logits),
}


@COPIES
@pytest.mark.parametrize(("make", "run"), COPIED.values(), ids=COPIED)
@torch.no_grad()
def test_a_copied_model(make, run, copied):
    """It is attached, counts for itself, and each of the two is detached alone."""
    model = make()
    dense = run(model)
    with apply_psa(model, CAUSAL) as handle:
        sparse = run(model)
        before = handle.stats()
        twin, other = copied(model), copied(model)
        assert torch.equal(run(twin), sparse)
        assert handle.stats() == before
        with pytest.raises(ValueError, match=r"attached to it.* already; call remove\(\) .*remove_psa"):
            apply_psa(twin, CAUSAL)
        remove_psa(other)
        assert is_clean(other) and torch.equal(run(model), sparse)
    assert torch.equal(run(twin), sparse)
    again = copied(twin)
    remove_psa(twin)
    assert is_clean(twin) and is_clean(model)
    assert torch.equal(run(twin), dense) and torch.equal(run(again), sparse)
    assert twin.config == model.config


@COPIES
def test_a_copied_transformer_follows_the_pipeline_that_runs_it(copied):
    """And copies no pipeline: it would be large."""
    pipe = make_wan_pipeline()
    apply_psa(pipe, WARM)
    sparse = make_video(pipe)
    assert len(pickle.dumps(pipe.transformer)) < 1.1 * len(pickle.dumps(make_wan_transformer())) + 50_000
    other = make_wan_pipeline(copied(pipe.transformer))
    assert torch.equal(make_video(other), sparse)


def test_a_transformer_from_a_file_outside_of_a_pipeline_knows_no_schedule():
    pipe = make_wan_pipeline()
    apply_psa(pipe, WARM)
    pipe.scheduler.set_timesteps(3)
    copied, loaded = copy.deepcopy(pipe.transformer), reloaded(pipe.transformer)
    inputs = make_wan_inputs(timestep=pipe.scheduler.timesteps[:1])
    with torch.no_grad():
        assert torch.equal(copied(**inputs).sample, pipe.transformer(**inputs).sample)
        with pytest.raises(ValueError, match="scheduler: expected one to tell the denoising step by, got none"):
            loaded(**inputs)


def test_language_models_count_every_call_of_every_thread():
    model = small.make_model(small.llama)
    with apply_psa(model, CAUSAL) as handle, ThreadPoolExecutor(4) as threads:
        expected = logits(model)
        assert all(torch.equal(found, expected) for found in threads.map(logits, [model] * 12))
        assert handle.stats().summary.sparse_calls == 2 * 13


class TestRemoving:
    @pytest.mark.parametrize("by_handle", [True, False], ids=["by the handle", "without"])
    @PIPELINES
    def test_nothing_is_left_behind(self, make, by_handle):
        pipe = make()
        dense, processors = make_video(pipe), pipe.transformer.attn_processors
        handle = apply_psa(pipe, SPARSE)
        make_video(pipe)
        handle.remove() if by_handle else remove_psa(pipe)
        assert is_clean(pipe.transformer)
        assert all(pipe.transformer.attn_processors[name] is processors[name] for name in processors)
        assert torch.equal(make_video(pipe), dense)
        assert handle.stats().summary.sparse_calls == 2 * 3
        with apply_psa(pipe, SPARSE):
            handle.remove()
            assert not is_clean(pipe.transformer)
        assert is_clean(pipe.transformer)

    def test_nothing_attached_is_fine(self):
        for model in (make_wan_pipeline(), make_cogvideox_transformer(), small.make_model(small.llama)):
            remove_psa(model)
            remove_psa(model)
        remove_psa(make_wan_modular_pipeline({}))
        remove_psa(torch.nn.Linear(1, 1))

    def test_an_attention_that_was_named_stays(self):
        model = small.make_model(small.llama)
        model.set_attn_implementation("psa")
        remove_psa(model)
        assert model.config._attn_implementation == "psa"
        apply_psa(model, CAUSAL)
        remove_psa(model)
        assert model.config._attn_implementation == "psa"

    def test_a_language_model_by_a_part_or_a_whole(self):
        model = small.make_model(small.qwen2_5_vl)
        for attached, removed in [(model, model.model), (model.model.language_model, model)]:
            apply_psa(attached, CAUSAL)
            assert not is_clean(model)
            remove_psa(removed)
            assert is_clean(model)
            assert model.config.text_config._attn_implementation == "sdpa"

    def test_after_processors_were_replaced(self):
        pipe = make_cogvideox_pipeline()
        apply_psa(pipe, SPARSE)
        pipe.transformer.fuse_qkv_projections()
        with pytest.raises(
            RuntimeError, match=r"replaced by .* call remove\(\) on its handle or psa_triton.remove_psa"
        ):
            make_video(pipe)
        remove_psa(pipe)
        assert is_clean(pipe.transformer)
        make_video(pipe)

    def test_a_second_pipeline_over_the_same_transformer(self):
        pipe = make_wan_pipeline()
        other = type(pipe).from_pipe(pipe)
        apply_psa(pipe, SPARSE)
        with pytest.raises(ValueError, match="PSA is attached to its transformer already; .*remove_psa"):
            apply_psa(other, SPARSE)
        remove_psa(other)
        assert is_clean(pipe.transformer)

    def test_other_parts_of_a_pipeline_are_looked_through(self):
        model = small.make_model(small.llama)
        apply_psa(model, CAUSAL)
        remove_psa(SimpleNamespace(text_encoder=model, vae=AutoencoderKLWan))
        assert is_clean(model)

    @pytest.mark.parametrize("target", [None, "pipe", SimpleNamespace(a=1)], ids=["none", "text", "object"])
    def test_what_holds_no_model(self, target):
        with pytest.raises(
            TypeError, match="model: expected a model or pipeline .* got .* without any torch.nn.Module"
        ):
            remove_psa(target)
