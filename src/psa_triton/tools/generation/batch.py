"""Many videos in one folder: those that are there already are kept, and one that fails does not stop the rest.

Several processes may write into one folder: each takes a video's name before it makes it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from psa_triton.tools.files import TakenError, check_room, held, json_bytes, staged
from psa_triton.tools.generation.request import VideoRequest
from psa_triton.tools.generation.sidecar import read_settings, settings_key
from psa_triton.tools.generation.single import GeneratedVideo
from psa_triton.tools.video import encode, expected_bytes

logger = logging.getLogger("psa_triton")

_SIDECAR = re.compile(r"(video|image)_\d{4,}\.json")
_SUFFIXES = {"video": ".mp4", "image": ".png"}


@dataclass(frozen=True)
class Job:
    """A video to make.

    Attributes:
        path: the mp4, `video_NNNN.mp4`, or `image_NNNN.png`; its sidecar has the same name and ends in `.json`.
        request: what to make.
        settings: everything that determines the video, as `settings_of` gives it.
        replaces: whether it takes the place of a video that is there; else it gets another number.
    """

    path: Path
    request: VideoRequest
    settings: dict[str, Any]
    replaces: bool = False

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the video."""
        return self.path.with_suffix(".json")

    @property
    def room(self) -> int:
        """Bytes that both files take, roughly."""
        return expected_bytes(self.request.width, self.request.height, self.request.num_frames)


def plan_jobs(
    folder: Path, requests: Sequence[VideoRequest], settings: Sequence[dict[str, Any]], *, overwrite: bool = False
) -> tuple[list[Job], list[Job]]:
    """What is left to do, and what is done already.

    A request is done where `video_NNNN.mp4`, or the PNG of an image, stands beside a sidecar of the same settings,
    whatever its number. Every other request gets the next number that is free. The sidecar is placed before the video
    gets its name, so a sidecar alone is a run that was cut short: the same request is done again under that number,
    others leave it.

    Args:
        folder: of the videos.
        requests: what to make.
        settings: of each, as `settings_of` gives them.
        overwrite: do all of them, request `i` as number `i`, whatever is there.

    Returns:
        Jobs to do, jobs that are done.

    Raises:
        ValueError: a sidecar is damaged, so that it cannot be told what it belongs to.
    """
    kind = "image" if requests and requests[0].is_image else "video"
    numbered = partial(_path, folder, kind)
    if overwrite:
        paths = (numbered(number) for number in count())
        return [Job(*each, replaces=True) for each in zip(paths, requests, settings, strict=False)], []
    # Where videos are, or were to be: the mp4 of every sidecar.
    sidecars = sorted(file for file in folder.glob(f"{kind}_*.json") if _SIDECAR.fullmatch(file.name))
    made = {file.with_suffix(_SUFFIXES[kind]): found for file in sidecars if (found := read_settings(file)) is not None}
    taken = frozenset(made)
    free = (path for path in map(numbered, count()) if path not in taken and not path.exists())
    of_settings: dict[str, list[Path]] = {}
    for path in sorted(made, key=lambda path: not path.exists()):  # videos before what was cut short
        of_settings.setdefault(settings_key(made[path]), []).append(path)
    todo: list[Job] = []
    done: list[Job] = []
    for request, wanted in zip(requests, settings, strict=True):
        same = of_settings.get(settings_key(wanted))
        job = Job(same.pop(0) if same else next(free), request, wanted)
        (done if job.path.exists() else todo).append(job)
    return todo, done


def _path(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}_{number:04d}{_SUFFIXES[kind]}"


def _following(path: Path) -> Path:
    kind, _, number = path.stem.partition("_")
    return _path(path.parent, kind, int(number) + 1)


def run_jobs(
    jobs: Sequence[Job],
    make: Callable[[Sequence[Job]], Sequence[GeneratedVideo]],
    *,
    batch_size: int = 1,
    describe: Callable[[], dict[str, Any]],
) -> Generator[tuple[Job, GeneratedVideo | Exception]]:
    """Make videos, `batch_size` at a time, each with its sidecar, and tell after each how it went.

    Any error fails just its video; an interrupt (Ctrl-C) stops the run. Close the iterator if it is not read to its
    end, which lets names go.

    Args:
        jobs: what to do.
        make: makes videos together.
        batch_size: how many together. Where a batch fails, its videos are made one by one, so that one bad prompt, or
            too little memory, costs no other video.
        describe: gives what else a sidecar holds, such as versions and hardware.
    """
    for first in range(0, len(jobs), batch_size):
        with ExitStack() as names:
            taken = []
            for job in jobs[first : first + batch_size]:
                try:  # what cannot be written is not made
                    check_room(job.path.parent, job.room)
                    taken.append(_take(job, names))
                except OSError as error:
                    yield job, error
            if taken:
                for job, outcome in _make_batch(taken, make):
                    yield (job, outcome) if isinstance(outcome, Exception) else _save(job, outcome, describe, names)


def _make_batch(
    batch: Sequence[Job], make: Callable[[Sequence[Job]], Sequence[GeneratedVideo]]
) -> Iterator[tuple[Job, GeneratedVideo | Exception]]:
    try:
        videos = make(batch)
    except Exception as error:
        logger.debug("%s failed", ", ".join(str(job.path) for job in batch), exc_info=True)
        if len(batch) == 1:
            yield batch[0], error
            return
        reason = str(error).partition("\n")[0]
        logger.warning("a batch of %d videos failed (%s); they are made one by one", len(batch), reason)
        for job in batch:
            yield from _make_batch([job], make)
    else:
        yield from zip(batch, videos, strict=True)


def _save(
    job: Job, video: GeneratedVideo, describe: Callable[[], dict[str, Any]], names: ExitStack
) -> tuple[Job, GeneratedVideo | Exception]:
    """Write the sidecar, then the video: see `plan_jobs`; returns how it went, under which name."""
    try:
        # Whoever does not take names, such as a person, may have put a file there meanwhile.
        place = job if _is_open(job) else _take(replace(job, path=_following(job.path)), names)
        with staged() as files:
            data = {"settings": place.settings, "cost": asdict(video.cost), **describe()}
            files.write(place.sidecar, json_bytes(data))
            files.write(place.path, encode(video.frames, place.request.fps, video.audio))
    except Exception as error:
        logger.debug("%s could not be saved", job.path, exc_info=True)
        return job, error
    return place, video


def _take(job: Job, names: ExitStack) -> Job:
    """The job under a name that is this process's own: by now another may have the planned one.

    Raises:
        TakenError: another process is making the same video, or has the name that is to be replaced.
        FileExistsError: another process has made the same video meanwhile.
    """
    request = sha256(settings_key(job.settings).encode()).hexdigest()
    here = job
    while True:
        with ExitStack() as attempt:
            try:
                attempt.enter_context(held(here.path, request))
            except TakenError as taken:
                if job.replaces or taken.purpose == request:
                    raise
            else:
                if _is_open(here):
                    names.enter_context(attempt.pop_all())
                    return here
                if here.path.exists() and _is_same(here):
                    raise FileExistsError(f"{here.path} was made by another process meanwhile")
        here = replace(here, path=_following(here.path))


def _is_open(job: Job) -> bool:
    """Whether a video may be put there: nothing is, or what is left of the same request."""
    if job.replaces:
        return True
    return not job.path.exists() and (not job.sidecar.exists() or _is_same(job))


def _is_same(job: Job) -> bool:
    """Whether the sidecar there is of the same request."""
    try:
        found = read_settings(job.sidecar)
    except ValueError:
        return False
    return found is not None and settings_key(found) == settings_key(job.settings)
