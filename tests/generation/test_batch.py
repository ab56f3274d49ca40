from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from psa_triton.generation import Cost, Failure, GeneratedVideo, Job, OnStep, VideoRequest, pending, run_jobs
from psa_triton.integrations.diffusers.stats import Recorder
from psa_triton.video import read_video

COST = Cost(
    total_seconds=2.0,
    transformer_seconds=1.5,
    sparse_attention_seconds=0.5,
    dense_attention_seconds=0.25,
    attention_density=0.2,
    attention_density_with_estimation=0.25,
    run_density=0.6,
    run_density_with_estimation=0.625,
    dense_reasons=("warm-up",),
)
NOTHING_RAN = Recorder(estimation_cost=0.0, timed=False).stats()


def make_jobs(folder: Path, *prompts: str, steps: int = 4) -> list[Job]:
    requests = [
        VideoRequest(
            prompt=prompt,
            seed=index,
            width=32,
            height=32,
            num_frames=5,
            num_inference_steps=steps,
            guidance_scale=1,
            fps=8,
        )
        for index, prompt in enumerate(prompts)
    ]
    return [
        Job(folder / f"video_{request.seed:04d}.mp4", request, {"prompt": request.prompt, "how": {"steps": steps}})
        for request in requests
    ]


def paint(requests: Sequence[VideoRequest], on_step: OnStep) -> list[GeneratedVideo]:
    """Grey videos, quickly; the prompt `bad` fails all that are made with it."""
    if any(request.prompt == "bad" for request in requests):
        raise RuntimeError("no such paint")
    on_step(1)
    return [GeneratedVideo(np.full((5, 32, 32, 3), 0.5, np.float32), COST, NOTHING_RAN) for _ in requests]


def run(jobs: list[Job], batch_size: int = 1) -> tuple[list[Failure], list[str]]:
    """The failures, and the order of what was told."""
    told: list[str] = []

    def start(batch: Sequence[Job]) -> OnStep:
        told.append(f"start {' '.join(job.path.name for job in batch)}")
        return lambda done: told.append(f"step {done}")

    def end(job: Job, outcome: GeneratedVideo | Failure) -> None:
        told.append(f"{type(outcome).__name__} {job.path.name}")

    failures = run_jobs(
        jobs, paint, batch_size=batch_size, describe=lambda: {"date": "today"}, on_start=start, on_end=end
    )
    return failures, told


def test_each_video_gets_a_sidecar_and_nothing_else_is_left(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path / "new" / "folder", "one", "two")
    assert run(jobs)[0] == []
    names = [file.name for file in sorted((tmp_path / "new" / "folder").iterdir())]
    assert names == ["video_0000.json", "video_0000.mp4", "video_0001.json", "video_0001.mp4"]
    assert len(read_video(jobs[1].path).frames) == 5
    sidecar = json.loads(jobs[1].sidecar.read_text())
    assert sidecar["settings"] == {"prompt": "two", "how": {"steps": 4}}
    assert sidecar["cost"]["attention_density"] == 0.2
    assert sidecar["date"] == "today"


def test_a_failure_does_not_stop_the_rest(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "one", "bad", "three")
    failures, told = run(jobs)
    assert [(failure.job, str(failure.error)) for failure in failures] == [(jobs[1], "no such paint")]
    assert told == [
        *("start video_0000.mp4", "step 1", "GeneratedVideo video_0000.mp4"),
        *("start video_0001.mp4", "Failure video_0001.mp4"),
        *("start video_0002.mp4", "step 1", "GeneratedVideo video_0002.mp4"),
    ]
    assert not jobs[1].path.exists()
    assert pending(jobs) == [jobs[1]]


def test_a_failed_batch_is_made_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jobs = make_jobs(tmp_path, "one", "bad", "three", "four", "five")
    with caplog.at_level(logging.WARNING, logger="psa_triton"):
        failures, told = run(jobs, batch_size=2)
    assert [failure.job for failure in failures] == [jobs[1]]
    assert told == [
        "start video_0000.mp4 video_0001.mp4",
        *("start video_0000.mp4", "step 1", "GeneratedVideo video_0000.mp4"),
        *("start video_0001.mp4", "Failure video_0001.mp4"),
        *("start video_0002.mp4 video_0003.mp4", "step 1"),
        *("GeneratedVideo video_0002.mp4", "GeneratedVideo video_0003.mp4"),
        *("start video_0004.mp4", "step 1", "GeneratedVideo video_0004.mp4"),
    ]
    assert [job.path.exists() for job in jobs] == [True, False, True, True, True]
    assert caplog.messages == ["a batch of 2 videos failed (no such paint); they are made one by one"]


def test_finished_videos_are_not_pending(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "one", "two")
    assert pending(jobs) == jobs
    run(jobs[:1])
    assert pending(jobs) == jobs[1:]
    assert pending(jobs, overwrite=True) == jobs


def test_what_an_interrupted_run_leaves_is_done_again(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, "one")
    run([job])
    # Cut short between sidecar and video, and while the video was being written.
    job.path.rename(tmp_path / "video_0000.new.mp4")
    (tmp_path / "video_0000.new.mp4.part").write_bytes(b"half")
    assert pending([job]) == [job]
    run([job])
    assert pending([job]) == []
    assert len(read_video(job.path).frames) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["video_0000.json", "video_0000.mp4"]


def test_other_settings_are_an_error_that_names_them(tmp_path: Path) -> None:
    run(make_jobs(tmp_path, "one"))
    changed = make_jobs(tmp_path, "uno", steps=8)
    message = r"video_0000.mp4 was made with other settings \(prompt: 'one' -> 'uno', how.steps: 4 -> 8\).*--overwrite"
    with pytest.raises(ValueError, match=message):
        pending(changed)
    assert pending(changed, overwrite=True) == changed


def test_a_video_without_sidecar_is_not_replaced_unasked(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, "one")
    job.path.write_bytes(b"somebody's video")
    with pytest.raises(ValueError, match="is there without its sidecar"):
        pending([job])


@pytest.mark.parametrize("content", ["", "[]", '{"other": 1}', '{"settings": 3}'])
def test_a_sidecar_that_is_none_is_an_error(content: str, tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, "one")
    run([job])
    job.sidecar.write_text(content)
    with pytest.raises(ValueError, match=r"video_0000.json: expected the sidecar of a video"):
        pending([job])


def test_an_interrupt_stops_the_run(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "one", "two")

    def interrupted(requests: Sequence[VideoRequest], on_step: OnStep) -> list[GeneratedVideo]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, interrupted, describe=dict, on_start=lambda job: print, on_end=lambda job, outcome: None)
    assert list(tmp_path.iterdir()) == []
