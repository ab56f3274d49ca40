"""`psa generate`, and the scripts of `examples/inference`: the videos that are left to do, and how they went."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import typer
from diffusers import DiffusionPipeline
from rich.console import Console

from psa_triton.tools.cli.commands import Generate
from psa_triton.tools.cli.console import VideoProgress, few, logging_to, make_console, reason, try_warm_up
from psa_triton.tools.cli.errors import told_if_interrupted
from psa_triton.tools.cli.options import refuse
from psa_triton.tools.cli.target import (
    choose_source,
    find_target,
    load,
    read_dense_parts,
    read_prompts,
    wanted_attention,
)
from psa_triton.tools.evaluation.verdict import judge_alone
from psa_triton.tools.files import output_folder
from psa_triton.tools.generation.attention import Attention, choose_attention
from psa_triton.tools.generation.batch import Job, plan_jobs, run_jobs
from psa_triton.tools.generation.loading import Target
from psa_triton.tools.generation.processes import Processes, launched_processes
from psa_triton.tools.generation.request import make_requests
from psa_triton.tools.generation.sidecar import settings_of, surroundings
from psa_triton.tools.generation.single import Cost, GeneratedVideo, generate_videos

logger = logging.getLogger("psa_triton")


def run(options: Generate, *, keys: Sequence[str] = (), configs: Path | None = None, sparse: bool = True) -> None:
    """Make videos.

    Args:
        options: what is asked for.
        keys: the models to choose from; see `choose_source`.
        configs: a `model_configs.py`; likewise.
        sparse: sparse attention where neither that nor a preset is asked for.

    Raises:
        OSError: the folder cannot be made or written, or has no room; known before the model is loaded.
        ValueError: an option is wrong, or a sidecar in the folder is damaged.
        Exception: the model cannot be loaded, or the attention does not fit it. One of several processes lets its
            videos fail instead, and does not stop the others.
        typer.Exit: videos failed, in whichever process.
    """
    prompts = read_prompts(options.prompts)
    source = choose_source(options.model, keys=keys, configs=configs)
    dense_parts = read_dense_parts(options.dense)
    attention = wanted_attention(
        options.attention, partial(choose_attention, source, dense_parts=dense_parts), sparse=sparse
    )
    if attention.config is None:
        refuse(options, ("max_error",), "sparse attention: give --use-psa, or the name of a sparse preset")
    requests = make_requests(source, prompts, seed=options.seed, settings=asdict(options.video))
    folder = options.output_dir / source.short_name
    if options.timestamp:
        folder /= datetime.now().strftime("%Y%m%d_%H%M%S")
    with launched_processes() as processes:
        target = find_target(source, options.machine, options.attention.preset.impl, processes)
        settings = [settings_of(target, request, attention) for request in requests]
        # Only one looks what is there: by the time another did, the first video might be made, and the shares differ.
        folder, todo, done = processes.from_main(
            lambda: (folder, *plan_jobs(folder, requests, settings, overwrite=options.overwrite))
        )
        failed = _Batch(target, attention, processes, options).make(todo, done, folder)
    if failed:
        raise typer.Exit(1)


@dataclass
class _Share:
    """How the videos of one process went.

    Attributes:
        made: the jobs, under the names that they got.
        costs: one each.
        failed: a line for each that was not made.
        seconds: from the first video to the last.
    """

    made: list[Job] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Batch:
    """How videos are made: the model, the attention, by which processes, and what else the options say."""

    target: Target
    attention: Attention
    processes: Processes
    options: Generate

    def make(self, todo: Sequence[Job], done: Sequence[Job], folder: Path) -> int:
        """Make the videos that are to do, and say how each went; how many failed, in all processes."""
        console = make_console(bars=self.processes.is_main)
        if self.processes.is_main:
            for job in done:
                console.print(f"{job.path}: finished before, skipped")
        mine, share = self.processes.share(todo), _Share()
        if mine:
            with (
                output_folder(folder, room=sum(job.room for job in mine)),
                told_if_interrupted(lambda: self._so_far(mine, share.made, folder)),
                logging_to(console, verbose=self.options.verbose),
            ):
                self._make_share(mine, share, console)
        shares = self.processes.gather(share)
        costs = [cost for share in shares for cost in share.costs]
        failed = sorted(line for share in shares for line in share.failed)
        if self.processes.is_main:
            if costs and (verdict := judge_alone(costs)) is not None:
                console.print(verdict)
            if failed:
                console.print("\n  ".join([f"{len(failed)} of {len(todo)} videos failed:", *failed]))
            counts = f"{len(costs)} made, {len(done)} skipped, {len(failed)} failed"
            seconds = max(share.seconds for share in shares)
            files = f"; files in {folder}" if costs or done else ""
            console.print(f"{counts}; {seconds:.1f} s{_mean_density(costs)}{files}")
        return len(failed)

    def _so_far(self, jobs: Sequence[Job], made: Sequence[Job], folder: Path) -> str:
        """What an interrupted process has made, what not, and how the rest comes about."""
        names = f" ({few([job.path.name for job in made])})" if made else ""
        requests = [job.request for job in made]
        missing = few([repr(job.request.prompt) for job in jobs if job.request not in requests])
        again = "starts anew, in a folder of its own" if self.options.timestamp else "goes on with these"
        return (
            f"{len(made)} of {len(jobs)} videos made{names}; not made: {missing}; the same command {again}; "
            f"files in {folder}"
        )

    def _make_share(self, jobs: list[Job], share: _Share, console: Console) -> None:
        """Make the videos of this process."""
        try:
            pipe = load(self.target, jobs[0].request, console)
            self.attention.attach(pipe).remove()  # tells what does not fit the model before each video does
        except Exception as error:
            if self.processes.count == 1:
                raise
            logger.warning("process %d makes none of its videos: %s", self.processes.index, reason(error))
            share.failed += [_failure_line(job, error) for job in jobs]
            return
        if self.options.warm_up:
            try_warm_up(console, pipe, [job.request for job in jobs[: self.options.batch_size]], self.attention)
        began = time.perf_counter()
        self._make_all(pipe, jobs, share, console)
        share.seconds = time.perf_counter() - began

    def _make_all(self, pipe: DiffusionPipeline, jobs: list[Job], share: _Share, console: Console) -> None:
        attention, config = self.attention, self.attention.config
        if self.options.verbose and config is not None:
            attention = replace(attention, config=config.replace(verbose=True))

        def make(batch: Sequence[Job]) -> list[GeneratedVideo]:
            first, last = batch[0].path.name, batch[-1].path.name
            name = first if first == last else f"{first} to {last}"
            on_step = progress.start_video(name, batch[0].request.num_inference_steps)
            return generate_videos(pipe, [job.request for job in batch], attention, on_step=on_step)

        describe = partial(surroundings, self.target.device)
        outcomes = run_jobs(jobs, make, batch_size=self.options.batch_size, describe=describe)
        with VideoProgress(console, len(jobs)) as progress, closing(outcomes):
            for job, outcome in outcomes:
                progress.end_video()
                if isinstance(outcome, Exception):
                    console.print(f"{job.path}: failed: {reason(outcome)}")
                    share.failed.append(_failure_line(job, outcome))
                else:
                    console.print(f"{job.path}: {_cost_line(outcome.cost)}")
                    share.made.append(job)
                    share.costs.append(outcome.cost)


def _cost_line(cost: Cost) -> str:
    together = "" if cost.videos == 1 else f" for {cost.videos} videos together"
    line = f"{cost.total_seconds:.1f} s{together}, {cost.attention_seconds:.1f} s of it in self-attention"
    if cost.attention_density is None:
        return f"{line}; all of it dense ({', '.join(cost.dense_reasons)})"
    error = "" if cost.measured_error is None else f"; measured error {cost.measured_error:.3f}"
    return (
        f"{line}; density {cost.attention_density:.1%}, {cost.attention_density_with_estimation:.1%} with estimation, "
        f"{cost.run_density_with_estimation:.1%} over the whole run{error}"
    )


def _failure_line(job: Job, error: Exception) -> str:
    return f"{job.path.name} ({job.request.prompt}): {reason(error)}"


def _mean_density(costs: Sequence[Cost]) -> str:
    densities = [cost.run_density_with_estimation for cost in costs if cost.run_density_with_estimation is not None]
    return f", mean density of self-attention {sum(densities) / len(densities):.1%}" if densities else ""
