from dataclasses import replace

import numpy as np
import pytest

from psa_triton.tools.evaluation.ceiling import Ceiling
from psa_triton.tools.evaluation.compare import compare_attentions, label_attentions


def test_reading_everything_gives_the_dense_video_and_reading_less_does_not(comparison):
    sparse, full = comparison.candidates
    assert full.fidelity["psnr"].mean > 60
    assert full.video.cost.attention_density == pytest.approx(1)
    assert sparse.fidelity["psnr"].mean < full.fidelity["psnr"].mean
    assert not np.array_equal(sparse.video.frames, comparison.dense.frames)


def test_dense_again_is_nearer_than_sparse_and_not_the_same(comparison):
    assert comparison.ceiling.label == "dense in bfloat16"
    again = comparison.ceiling.fidelity["psnr"].mean
    assert comparison.candidates[0].fidelity["psnr"].mean < again < 100


def test_an_attention_that_fails_costs_no_other(pipe, request_320, sparse):
    broken = replace(sparse, name="hand/broken", config=sparse.config.replace(block_m=64, use_sim_mask=True))
    broken = replace(broken, dense_parts=replace(broken.dense_parts, dense_layers=(7,)))
    done = compare_attentions(pipe, replace(request_320, num_frames=5), [broken, sparse])
    assert [candidate.label for candidate in done.candidates] == ["half"]
    assert list(done.missing) == ["broken"]
    assert "dense_layers" in str(done.missing["broken"])


def test_a_second_dense_run_that_fails_costs_no_other(pipe, request_320, full):
    def refuse(*_):
        raise RuntimeError("no such backend")

    ceiling = Ceiling("dense by another backend", refuse)
    done = compare_attentions(pipe, replace(request_320, num_frames=5), [full], ceiling=ceiling)
    assert done.ceiling is None
    assert list(done.missing) == [ceiling.label]
    assert len(done.candidates) == 1


def test_progress_is_told_for_every_video(pipe, request_320, full):
    told = []

    def start(label):
        told.append(label)
        return lambda done, error: told.append((done, error))

    compare_attentions(
        pipe, replace(request_320, num_frames=5), [full], on_start=start, on_end=lambda: told.append("end")
    )
    assert told == ["dense", (1, None), (2, None), "end", "full", (1, None), (2, None), "end"]


def test_labels_are_preset_names_and_full_where_those_are_the_same(full):
    a, b, c = (replace(full, name=name) for name in ("x/one", "y/one", "y/two"))
    assert label_attentions([a, b, c]) == ["x/one", "y/one", "two"]
