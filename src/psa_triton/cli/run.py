"""A run of `psa generate`: the videos that are left to do, with progress, and how they went."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline
from rich.console import Console

from psa_triton.cli.options import Target, logging_to
from psa_triton.cli.outcome import outcome_line, reason, summary_line
from psa_triton.cli.progress import VideoProgress
from psa_triton.generation import (
    Attention,
    Cost,
    Failure,
    GeneratedVideo,
    Job,
    OnStep,
    VideoRequest,
    generate_videos,
    pending,
    run_jobs,
    settings_of,
    surroundings,
    warm_up,
)

logger = logging.getLogger("psa_triton")


@dataclass(frozen=True)
class Run:
    """How videos are made: the model, the attention, how many together, after an untimed step or not, and how loud."""

    target: Target
    attention: Attention
    batch_size: int
    warm_up: bool
    verbose: bool

    def make(self, requests: Sequence[VideoRequest], folder: Path, *, overwrite: bool) -> list[Failure]:
        """Make the videos that are not in `folder` yet, and say how each went; returns those that failed.

        Raises:
            ValueError: a video is there that was made with other settings.
        """
        console = Console(highlight=False, markup=False, soft_wrap=True)
        jobs = [
            Job(folder / f"video_{index:04d}.mp4", request, self._settings(request))
            for index, request in enumerate(requests)
        ]
        todo = pending(jobs, overwrite=overwrite)
        for job in jobs:
            if job not in todo:
                console.print(f"{job.path}: finished before, skipped")
        skipped = len(jobs) - len(todo)
        if not todo:
            console.print(summary_line(folder, [], skipped=skipped, failed=0, seconds=0))
            return []
        with logging_to(console, verbose=self.verbose):
            pipe = self.target.load(todo[0].request, console)
            if self.warm_up:
                self._warm_up(pipe, [job.request for job in todo[: self.batch_size]], console)
            return self._make_all(pipe, todo, folder, console, skipped=skipped)

    def _settings(self, request: VideoRequest) -> dict[str, object]:
        target = self.target
        return settings_of(
            target.source, request, self.attention, device=target.device, dtype=target.dtype, lora=target.lora
        )

    def _warm_up(self, pipe: DiffusionPipeline, requests: Sequence[VideoRequest], console: Console) -> None:
        try:
            with console.status("warming up"):
                warm_up(pipe, requests, self.attention)
        except Exception as error:  # the run itself will tell which video cannot be made
            logger.warning("the untimed first step failed (%s): times hold what is done only once", reason(error))

    def _make_all(
        self, pipe: DiffusionPipeline, todo: list[Job], folder: Path, console: Console, *, skipped: int
    ) -> list[Failure]:
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

        began = time.perf_counter()
        with VideoProgress(console, len(todo)) as progress:
            describe = partial(surroundings, self.target.device)
            failures = run_jobs(
                todo,
                make,
                batch_size=self.batch_size,
                describe=describe,
                on_start=progress.start_batch,
                on_end=end,
            )
        seconds = time.perf_counter() - began
        if failures:
            console.print(f"{len(failures)} of {len(todo)} videos failed:")
        for failure in failures:
            console.print(f"  {failure.job.path.name} ({failure.job.request.prompt}): {reason(failure.error)}")
        console.print(summary_line(folder, costs, skipped=skipped, failed=len(failures), seconds=seconds))
        return failures
