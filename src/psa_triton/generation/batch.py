"""Many videos in one folder: those that are there already are kept, and one that fails does not stop the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psa_triton.generation.request import VideoRequest
from psa_triton.generation.sidecar import differences, read_settings, write_json
from psa_triton.generation.single import GeneratedVideo, OnStep
from psa_triton.video import write_video

logger = logging.getLogger("psa_triton")


@dataclass(frozen=True)
class Job:
    """A video to make.

    Attributes:
        path: the mp4; its sidecar has the same name and ends in `.json`.
        request: what to make.
        settings: everything that determines the video, as `settings_of` gives it.
    """

    path: Path
    request: VideoRequest
    settings: dict[str, Any]

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the video."""
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class Failure:
    """A video that could not be made, and why."""

    job: Job
    error: Exception


def pending(jobs: Sequence[Job], *, overwrite: bool = False) -> list[Job]:
    """The jobs that are left to do.

    A video is done when it stands beside a sidecar of the same settings. The sidecar is written before the video gets
    its name, so a sidecar alone is a run that was cut short, and is done again.

    Args:
        jobs: all jobs.
        overwrite: do all of them, whatever is there.

    Raises:
        ValueError: a video is there that was made with other settings, or that has no sidecar.
    """
    return list(jobs) if overwrite else [job for job in jobs if not _is_done(job)]


def _is_done(job: Job) -> bool:
    if not job.path.exists():
        return False
    found = read_settings(job.sidecar)
    if found is None:
        raise ValueError(f"{job.path} is there without its sidecar; give --overwrite to replace it, or another folder")
    if changed := differences(found, job.settings):
        raise ValueError(
            f"{job.path} was made with other settings ({changed}); give --overwrite to replace it, or another folder"
        )
    return True


def run_jobs(
    jobs: Sequence[Job],
    make: Callable[[VideoRequest, OnStep], GeneratedVideo],
    *,
    describe: Callable[[], dict[str, Any]],
    on_start: Callable[[Job], OnStep],
    on_end: Callable[[Job, GeneratedVideo | Failure], None],
) -> list[Failure]:
    """Make videos one after another, each with its sidecar.

    Args:
        jobs: what to do.
        make: makes one video.
        describe: gives what else a sidecar holds, such as versions and hardware.
        on_start: told before each video; what it returns is told of each denoising step.
        on_end: told after each video how it went.

    Returns:
        The videos that failed. Any error fails just its video; an interrupt (Ctrl-C) stops the run.
    """
    failures = []
    for job in jobs:
        on_step = on_start(job)
        try:
            video = make(job.request, on_step)
            _save(job, video, describe())
        except Exception as error:
            logger.debug("%s failed", job.path, exc_info=True)
            failures.append(Failure(job, error))
            on_end(job, failures[-1])
        else:
            on_end(job, video)
    return failures


def _save(job: Job, video: GeneratedVideo, described: dict[str, Any]) -> None:
    """Sidecar first, then the video under its final name: see `pending`."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    staged = job.path.with_name(f"{job.path.stem}.new.mp4")
    try:
        write_video(staged, video.frames, fps=job.request.fps)
        job.path.unlink(missing_ok=True)
        write_json(job.sidecar, {"settings": job.settings, "cost": video.cost.as_dict(), **described})
        staged.replace(job.path)
    finally:
        staged.unlink(missing_ok=True)
