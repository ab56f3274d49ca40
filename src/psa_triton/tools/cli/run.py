"""A run of `psa generate`: the videos that are left to do, with progress, and how they went."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline
from rich.console import Console

from psa_triton.tools.cli.errors import told_if_interrupted
from psa_triton.tools.cli.outcome import failure_line, few, outcome_line, reason, summary_line
from psa_triton.tools.cli.progress import VideoProgress, logging_to, make_console
from psa_triton.tools.cli.target import Target
from psa_triton.tools.files import output_folder
from psa_triton.tools.generation import (
    Attention,
    Cost,
    Failure,
    GeneratedVideo,
    Job,
    OnStep,
    Processes,
    VideoRequest,
    generate_videos,
    plan_jobs,
    run_jobs,
    settings_of,
    surroundings,
    warm_up,
)

logger = logging.getLogger("psa_triton")


@dataclass(frozen=True)
class _Share:
    """How the videos of one process went.

    Attributes:
        costs: one a video that was made.
        failed: a line for each that was not.
        seconds: from the first video to the last.
    """

    costs: list[Cost]
    failed: list[str]
    seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """How videos are made: the model, the attention, by which processes, how many together, and how loud.

    With `warm_up` each process first makes an untimed step. `new_folder` tells that the run has a folder of its own, so
    that a second one does not go on with it.
    """

    target: Target
    attention: Attention
    processes: Processes
    batch_size: int
    warm_up: bool
    verbose: bool
    new_folder: bool = False

    def make(self, requests: Sequence[VideoRequest], folder: Path, *, overwrite: bool) -> int:
        """Make the videos that are not in `folder` yet, and say how each went.

        A video that is there with the same settings is not made again; every other gets the next number.

        Returns:
            How many failed, in all processes.

        Raises:
            OSError: the folder cannot be made or written, or has no room; known before the model is loaded.
            ValueError: a sidecar in the folder is damaged.
            Exception: the model cannot be loaded, or the attention does not fit it. One of several processes lets its
                videos fail instead, and does not stop the others.
        """
        console = make_console(self.processes)
        settings = [self._settings(request) for request in requests]
        # Only one looks what is there: by the time another did, the first video might be made, and the shares differ.
        todo, finished = self.processes.from_main(lambda: plan_jobs(folder, requests, settings, overwrite=overwrite))
        if self.processes.is_main:
            for job in finished:
                console.print(f"{job.path}: finished before, skipped")
        mine = self.processes.share(todo)
        made: list[Job] = []
        with (
            output_folder(folder, room=sum(job.room for job in mine)) if mine else nullcontext(),
            told_if_interrupted(lambda: self._so_far(mine, made, folder)),
            logging_to(console, verbose=self.verbose),
        ):
            share = self._make_share(mine, made, console)
        shares = self.processes.gather(share)
        failed = sorted(line for share in shares for line in share.failed)
        if self.processes.is_main:
            if failed:
                console.print(f"{len(failed)} of {len(todo)} videos failed:")
            for line in failed:
                console.print(f"  {line}")
            costs = [cost for share in shares for cost in share.costs]
            seconds = max(share.seconds for share in shares)
            console.print(summary_line(folder, costs, skipped=len(finished), failed=len(failed), seconds=seconds))
        return len(failed)

    def _settings(self, request: VideoRequest) -> dict[str, object]:
        target = self.target
        return settings_of(
            target.source, request, self.attention, device=target.device, dtype=target.dtype, lora=target.lora
        )

    def _so_far(self, jobs: Sequence[Job], made: Sequence[Job], folder: Path) -> str:
        """What an interrupted process has made, what not, and how the rest comes about."""
        names = f" ({few([job.path.name for job in made])})" if made else ""
        requests = [job.request for job in made]
        missing = few([repr(job.request.prompt) for job in jobs if job.request not in requests])
        again = "starts anew, in a folder of its own" if self.new_folder else "goes on with these"
        return (
            f"{len(made)} of {len(jobs)} videos made{names}; not made: {missing or 'none'}; the same command {again}; "
            f"files in {folder}"
        )

    def _make_share(self, jobs: list[Job], made: list[Job], console: Console) -> _Share:
        """Make the videos of this process."""
        if not jobs:
            return _Share([], [])
        try:
            pipe = self.target.load(jobs[0].request, console)
            self.attention.attach(pipe).remove()  # tells what does not fit the model before each video does
        except Exception as error:
            if self.processes.count == 1:
                raise
            logger.warning("process %d makes none of its videos: %s", self.processes.index, reason(error))
            return _Share([], [failure_line(Failure(job, error)) for job in jobs])
        if self.warm_up:
            self._warm_up(pipe, [job.request for job in jobs[: self.batch_size]], console)
        return self._make_all(pipe, jobs, made, console)

    def _warm_up(self, pipe: DiffusionPipeline, requests: Sequence[VideoRequest], console: Console) -> None:
        try:
            with console.status("warming up"):
                warm_up(pipe, requests, self.attention)
        except Exception as error:  # the run itself will tell which video cannot be made
            logger.warning("the untimed first step failed (%s): times hold what is done only once", reason(error))

    def _make_all(self, pipe: DiffusionPipeline, jobs: list[Job], made: list[Job], console: Console) -> _Share:
        attention, config = self.attention, self.attention.config
        if self.verbose and config is not None:
            attention = replace(attention, config=config.replace(verbose=True))
        costs: list[Cost] = []

        def make(requests: Sequence[VideoRequest], on_step: OnStep) -> list[GeneratedVideo]:
            return generate_videos(pipe, requests, attention, on_step=on_step)

        def end(job: Job, outcome: GeneratedVideo | Failure) -> None:
            progress.end_video()
            console.print(outcome_line(job.path, outcome))
            if isinstance(outcome, GeneratedVideo):
                costs.append(outcome.cost)
                made.append(job)

        began = time.perf_counter()
        with VideoProgress(console, len(jobs)) as progress:
            failures = run_jobs(
                jobs,
                make,
                batch_size=self.batch_size,
                describe=partial(surroundings, self.target.device),
                on_start=progress.start_batch,
                on_end=end,
            )
        return _Share(costs, [failure_line(failure) for failure in failures], time.perf_counter() - began)
