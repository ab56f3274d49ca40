from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from psa_triton.config import PSAConfig
from psa_triton.evaluation import (
    Comparison,
    compare_attentions,
    label_attentions,
    sentence,
    write_comparison,
)
from psa_triton.generation import DENSE, Attention, VideoRequest, generate_video
from psa_triton.video import read_video

# Of ten key blocks two are read in full and three in pairs: a density of .2 + .3 / 2.
SPARSE = Attention(
    name="hand/half",
    config=PSAConfig(block_m=64, block_n=32, mask_ratios={1: (0, 0.2), 2: (0.2, 0.5), 0: (0.5, 1)}, warmup_steps=1),
)
FULL = Attention(name="hand/full", config=PSAConfig(block_m=64, block_n=32, mask_ratios={1: (0, 1)}))


@pytest.fixture(scope="module")
def comparison(pipe: DiffusionPipeline, request_320: VideoRequest) -> Comparison:
    return compare_attentions(pipe, request_320, [SPARSE, FULL])


def test_the_dense_video_is_the_one_that_dense_generation_makes(
    comparison: Comparison, pipe: DiffusionPipeline
) -> None:
    alone = generate_video(pipe, comparison.request, DENSE)
    np.testing.assert_array_equal(comparison.dense.frames, alone.frames)
    assert comparison.dense.cost.run_density == 1


def test_reading_everything_gives_the_dense_video_and_reading_less_does_not(comparison: Comparison) -> None:
    sparse, full = comparison.candidates
    assert full.fidelity.psnr > 60
    assert full.video.cost.attention_density == pytest.approx(1)
    assert sparse.fidelity.psnr < full.fidelity.psnr
    assert not np.array_equal(sparse.video.frames, comparison.dense.frames)


def test_densities_by_hand(comparison: Comparison) -> None:
    cost = comparison.candidates[0].video.cost
    assert cost.attention_density == pytest.approx(0.35)
    assert cost.run_density == pytest.approx((1 + 0.35) / 2), "one of two steps is warm-up"
    assert cost.attention_density_with_estimation > 0.35
    assert 0 < cost.attention_seconds < cost.transformer_seconds < cost.total_seconds


def test_files_hold_the_videos_and_all_numbers(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(tmp_path, comparison, {"date": "today"})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("comparison.json", "dense.mp4", "frames.png", "full.mp4", "half.mp4", "side_by_side.mp4")
    ]
    assert read_video(tmp_path / "half.mp4").frames.shape == (17, 64, 64, 3)
    joined = read_video(tmp_path / "side_by_side.mp4").frames
    assert len(joined) == 17
    assert joined.shape[2] > 3 * 256, "three videos of 64 pixels, magnified"
    with Image.open(tmp_path / "frames.png") as sheet:
        assert sheet.height > 5 * 160, "five rows"
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["date"] == "today"
    assert saved["request"]["seed"] == 42
    assert [entry["label"] for entry in saved["candidates"]] == ["half", "full"]
    assert saved["candidates"][0]["cost"]["attention_density"] == pytest.approx(0.35)
    assert len(saved["candidates"][0]["psnr_frames"]) == len(saved["candidates"][0]["ssim_frames"]) == 17


def test_a_single_candidate_is_called_psa(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(tmp_path, replace(comparison, candidates=comparison.candidates[:1]), {})
    assert (tmp_path / "psa.mp4").is_file()


@pytest.mark.parametrize(
    ("dense_seconds", "pace"),
    [(2.0, "2.00 times as fast"), (1.0, "as fast"), (0.5, "2.00 times as slow")],
)
def test_the_sentence_says_how_much_was_read_and_how_long_it_took(
    comparison: Comparison, dense_seconds: float, pace: str
) -> None:
    candidate = comparison.candidates[0]
    cost = replace(candidate.video.cost, sparse_attention_seconds=0.75, dense_attention_seconds=0.25)
    dense = replace(comparison.dense.cost, dense_attention_seconds=dense_seconds)
    said = sentence(
        replace(comparison, dense=replace(comparison.dense, cost=dense)),
        replace(candidate, video=replace(candidate.video, cost=cost)),
    )
    assert said.startswith("half did 35.0% of the attention work in its sparse layers (67.5% over the whole run)")
    assert said.endswith(f"took 1.0 s instead of {dense_seconds} s: {pace}.")


def test_the_sentence_of_a_run_that_never_was_sparse_says_why(
    pipe: DiffusionPipeline, request_320: VideoRequest
) -> None:
    request = replace(request_320, num_inference_steps=1)
    comparison = compare_attentions(pipe, request, [SPARSE], warm_up=False)
    assert sentence(comparison, comparison.candidates[0]).startswith("half ran dense throughout (warm-up)")


def test_progress_is_told_for_every_video_but_not_for_the_warm_up(
    pipe: DiffusionPipeline, request_320: VideoRequest
) -> None:
    request = replace(request_320, num_frames=5)
    told: list[object] = []

    def start(label: str) -> object:
        told.append(label)
        return told.append

    compare_attentions(pipe, request, [FULL], on_start=start, on_end=lambda: told.append("end"))
    assert told == ["dense", 1, 2, "end", "full", 1, 2, "end"]


def test_labels_are_preset_names_and_full_where_those_are_the_same() -> None:
    a, b, c = (replace(FULL, name=name) for name in ("x/one", "y/one", "y/two"))
    assert label_attentions([a, b, c]) == ["x/one", "y/one", "two"]


@pytest.mark.parametrize(
    ("attentions", "message"),
    [([], "at least one"), ([DENSE], "which is dense"), ([FULL, FULL], "hand/full twice")],
    ids=["none", "dense", "twice"],
)
def test_what_is_not_worth_comparing_is_refused(attentions: list[Attention], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_attentions(attentions)
