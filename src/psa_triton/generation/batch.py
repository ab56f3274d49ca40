"""Many videos in one folder: those that are there already are kept, and one that fails does not stop the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
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
    make: Callable[[Sequence[VideoRequest], OnStep], Sequence[GeneratedVideo]],
    *,
    batch_size: int = 1,
    describe: Callable[[], dict[str, Any]],
    on_start: Callable[[Sequence[Job]], OnStep],
    on_end: Callable[[Job, GeneratedVideo | Failure], None],
) -> list[Failure]:
    """Make videos, `batch_size` at a time, each with its sidecar.

    Args:
        jobs: what to do.
        make: makes videos together.
        batch_size: how many together. Where a batch fails, its videos are made one by one, so that one bad prompt, or
            too little memory, costs no other video.
        describe: gives what else a sidecar holds, such as versions and hardware.
        on_start: told before each batch; what it returns is told of each denoising step.
        on_end: told after each video how it went.

    Returns:
        The videos that failed. Any error fails just its video; an interrupt (Ctrl-C) stops the run.
    """
    failures = []
    for first in range(0, len(jobs), batch_size):
        for job, outcome in _run_batch(jobs[first : first + batch_size], make, describe, on_start):
            if isinstance(outcome, Failure):
                failures.append(outcome)
            on_end(job, outcome)
    return failures


def _run_batch(
    batch: Sequence[Job],
    make: Callable[[Sequence[VideoRequest], OnStep], Sequence[GeneratedVideo]],
    describe: Callable[[], dict[str, Any]],
    on_start: Callable[[Sequence[Job]], OnStep],
) -> Iterator[tuple[Job, GeneratedVideo | Failure]]:
    on_step = on_start(batch)
    try:
        videos = make([job.request for job in batch], on_step)
        for job, video in zip(batch, videos, strict=True):
            _save(job, video, describe())
    except Exception as error:
        logger.debug("%s failed", ", ".join(str(job.path) for job in batch), exc_info=True)
        if len(batch) == 1:
            yield batch[0], Failure(batch[0], error)
            return
        reason = str(error).partition("\n")[0]
        logger.warning("a batch of %d videos failed (%s); they are made one by one", len(batch), reason)
        for job in batch:
            yield from _run_batch([job], make, describe, on_start)
    else:
        yield from zip(batch, videos, strict=True)


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
