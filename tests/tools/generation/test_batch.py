import json
import logging
from dataclasses import fields, replace

import numpy as np
import pytest

from psa_triton.integrations.diffusers import PSAStats
from psa_triton.integrations.stats import Recorder
from psa_triton.tools.files import held
from psa_triton.tools.generation import Cost, GeneratedVideo, VideoRequest
from psa_triton.tools.generation.batch import Job, plan_jobs, run_jobs
from psa_triton.tools.understanding import read_media

COST = Cost(**dict.fromkeys((field.name for field in fields(Cost)), 0.5) | {"dense_reasons": ("warm-up",)})
SMALL = {"width": 32, "height": 32, "num_frames": 5, "guidance_scale": 1, "fps": 8}
NOTHING_RAN = Recorder(PSAStats.of, timed=False).stats()


def make_jobs(folder, *prompts, steps=4):
    jobs = []
    for index, prompt in enumerate(prompts):
        request = VideoRequest(prompt=prompt, seed=index, num_inference_steps=steps, **SMALL)
        jobs.append(Job(folder / f"video_{index:04d}.mp4", request, {"prompt": prompt, "how": {"steps": steps}}))
    return jobs


def paint(batch):
    """Grey videos, quickly; the prompt `bad` fails all that are made with it."""
    if any(job.request.prompt == "bad" for job in batch):
        raise RuntimeError("no such paint")
    return [GeneratedVideo(np.full((5, 32, 32, 3), 0.5, np.float32), COST, NOTHING_RAN) for _ in batch]


def plan(jobs, *, overwrite=False):
    """Names of the videos that are left to do."""
    requests, settings = [job.request for job in jobs], [job.settings for job in jobs]
    todo, done = plan_jobs(jobs[0].path.parent, requests, settings, overwrite=overwrite)
    assert len(todo) + len(done) == len(jobs)
    return [job.path.name for job in todo]


def run(jobs, batch_size=1, make=paint):
    """The failures, and the order of what was done and told."""
    told = []

    def tell(batch):
        told.append(f"start {' '.join(job.path.name for job in batch)}")
        return make(batch)

    failures = []
    for job, outcome in run_jobs(jobs, tell, batch_size=batch_size, describe=lambda: {"date": "today"}):
        told.append(f"{'failed' if isinstance(outcome, Exception) else 'made'} {job.path.name}")
        if isinstance(outcome, Exception):
            failures.append((job, outcome))
    return failures, told


def test_a_failed_batch_is_made_one_by_one(tmp_path, caplog):
    jobs = make_jobs(tmp_path, "one", "bad", "three", "four", "five")
    with caplog.at_level(logging.WARNING, logger="psa_triton"):
        failures, told = run(jobs, batch_size=2)
    assert [job for job, _ in failures] == [jobs[1]]
    assert told == [
        *("start video_0000.mp4 video_0001.mp4", "start video_0000.mp4", "made video_0000.mp4"),
        *("start video_0001.mp4", "failed video_0001.mp4"),
        *("start video_0002.mp4 video_0003.mp4", "made video_0002.mp4", "made video_0003.mp4"),
        *("start video_0004.mp4", "made video_0004.mp4"),
    ]
    assert [job.path.exists() for job in jobs] == [True, False, True, True, True]
    assert caplog.messages == ["a batch of 2 videos failed (no such paint); they are made one by one"]


def test_other_requests_get_the_next_numbers_that_are_free(tmp_path):
    run(make_jobs(tmp_path, "one", "bad", "three"))
    (tmp_path / "video_0003.mp4").write_bytes(b"somebody's video")
    assert plan(make_jobs(tmp_path, "three", "four", "five", "one")) == ["video_0001.mp4", "video_0004.mp4"]
    assert plan(make_jobs(tmp_path, "one", steps=8)) == ["video_0001.mp4"], "one setting more makes another video"


def test_what_a_run_cut_short_leaves_is_done_again_by_the_same_request_alone(tmp_path):
    (job,) = make_jobs(tmp_path, "one")
    run([job])
    job.path.unlink()  # cut short between sidecar and video
    assert plan(make_jobs(tmp_path, "other")) == ["video_0001.mp4"]
    assert plan(make_jobs(tmp_path, "one", "other")) == ["video_0000.mp4", "video_0001.mp4"]
    run([job])
    assert plan([job]) == []
    assert read_media(job.path, "video").total_frames == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["video_0000.json", "video_0000.mp4"]


def test_a_name_that_another_process_has_is_left_to_it(tmp_path):
    jobs = make_jobs(tmp_path, "one", "two")
    with held(jobs[0].path, "another request"):
        failures, told = run(jobs)
    assert failures == []
    assert told == [f"{what} video_000{number}.mp4" for number in (1, 2) for what in ("start", "made")]
    for number, prompt in ((1, "one"), (2, "two")):
        assert json.loads((tmp_path / f"video_000{number}.json").read_text())["settings"]["prompt"] == prompt


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    (job,) = make_jobs(tmp_path, "one")

    def slowly(batch):
        job.path.write_bytes(b"somebody's video")
        return paint(batch)

    assert run([job], make=slowly) == ([], ["start video_0000.mp4", "made video_0001.mp4"])
    assert job.path.read_bytes() == b"somebody's video"
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["video_0000.mp4", "video_0001.json", "video_0001.mp4"]


def test_the_same_video_is_not_made_by_two(tmp_path):
    """The second is told who makes it; once it is there, that it is."""
    (job,) = make_jobs(tmp_path, "one")
    waiting = []

    def meanwhile(batch):
        waiting.extend(run([job])[0])
        return paint(batch)

    assert run([job], make=meanwhile)[0] == []
    assert "video_0000.mp4 is being written by process" in str(waiting[0][1])
    (((_, late),), _) = run([job])
    assert "video_0000.mp4 was made by another process meanwhile" in str(late)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["video_0000.json", "video_0000.mp4"]


def test_a_video_that_cannot_be_saved_fails_alone_and_leaves_nothing(tmp_path, monkeypatch):
    jobs = make_jobs(tmp_path, "one", "two")

    def full(frames, fps, audio):
        raise OSError("no room")

    monkeypatch.setattr("psa_triton.tools.generation.batch.encode", full)
    failures, told = run(jobs, batch_size=2)
    assert [str(error) for _, error in failures] == ["no room", "no room"]
    assert sum(line.startswith("start") for line in told) == 1, "what cannot be saved is not made again one by one"
    assert list(tmp_path.iterdir()) == []


def test_without_room_no_video_is_made(tmp_path):
    (job,) = make_jobs(tmp_path, "one")
    huge = replace(job, request=replace(job.request, num_frames=1 << 40))
    failures, told = run([huge])
    assert "of room for the results" in str(failures[0][1])
    assert told == ["failed video_0000.mp4"]


def test_an_interrupt_stops_the_run(tmp_path):
    jobs = make_jobs(tmp_path, "one", "two")

    def interrupted(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(jobs, make=interrupted)
    assert list(tmp_path.iterdir()) == []
