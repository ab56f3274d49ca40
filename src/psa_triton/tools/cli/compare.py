"""`psa compare`: dense and sparse attention on the same noise; the cases that are left to do, and how they went."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import typer
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.table import Table

from psa_triton.tools.cli.commands import Compare
from psa_triton.tools.cli.console import VideoProgress, few, logging_to, make_console, reason, try_warm_up
from psa_triton.tools.cli.errors import told_if_interrupted
from psa_triton.tools.cli.tables import print_table
from psa_triton.tools.cli.target import choose_source, find_target, load, read_dense_parts, read_prompts
from psa_triton.tools.evaluation.case import (
    Case,
    expected_room,
    make_way,
    plan_cases,
    read_finished,
    write_case,
    write_summary,
)
from psa_triton.tools.evaluation.ceiling import Ceiling, choose_ceiling
from psa_triton.tools.evaluation.compare import compare_attentions
from psa_triton.tools.evaluation.summary import notes, summarise, table_rows
from psa_triton.tools.evaluation.verdict import judge
from psa_triton.tools.files import check_room, held, output_folder
from psa_triton.tools.generation.attention import DENSE, Attention, choose_attention
from psa_triton.tools.generation.loading import Target
from psa_triton.tools.generation.request import make_requests
from psa_triton.tools.generation.sidecar import surroundings
from psa_triton.tools.machine import others_at_work

logger = logging.getLogger("psa_triton")

Data = Mapping[str, Any]


def run(options: Compare) -> None:
    """Do the cases that are not done yet, write the summary of all, and show it.

    Raises:
        OSError: the folder cannot be made or written, or has no room; known before the model is loaded.
        TakenError: another process compares into it.
        ValueError: an option is wrong, or a case is there that was made with other settings.
        typer.Exit: something failed.
    """
    prompts = read_prompts(options.prompts)
    seeds = _all_seeds(options.seed or [42], options.num_seeds)
    target = find_target(choose_source(options.model), options.machine, options.preset.impl)
    dense_parts = read_dense_parts(options.dense)
    file, impl = options.preset.config, options.preset.impl
    presets: list[str] | list[None] = options.attention_preset or [None]
    attentions = [
        choose_attention(target.source, preset, file=file, impl=impl, dense_parts=dense_parts) for preset in presets
    ]
    requests = make_requests(target.source, prompts, seed=0, settings=asdict(options.video))
    ceiling = choose_ceiling(options.ceiling, target.device, target.dtype)
    folder = options.output_dir
    cases = plan_cases(folder, requests, seeds, attentions, ceiling=ceiling, model=target.as_dict())
    with output_folder(folder, room=0), held(folder):
        make_way(folder, cases, overwrite=options.overwrite)
        done: dict[str, Data | None] = {case.name: read_finished(case, overwrite=options.overwrite) for case in cases}
        failed = _Comparison(target, attentions, ceiling, cases, done).make(folder, warm_up=options.warm_up)
    if failed:
        raise typer.Exit(1)


def _all_seeds(seeds: list[int], count: int) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seed: expected each once, got {seeds}")
    if count > 1 and len(seeds) > 1:
        raise ValueError("expected --num-seeds with at most one --seed, got several")
    return seeds if count == 1 else [seeds[0] + index for index in range(count)]


@dataclass(frozen=True)
class _Comparison:
    """What is compared: the model, the attentions, how dense attention is made again; and how far it is.

    `done` has the numbers of each case by its name, None for one that is not done; `errors` why it could not be.
    """

    target: Target
    attentions: Sequence[Attention]
    ceiling: Ceiling | None
    cases: Sequence[Case]
    done: dict[str, Data | None]
    errors: dict[str, Exception] = field(default_factory=dict)
    console: Console = field(default_factory=make_console)

    def make(self, folder: Path, *, warm_up: bool) -> int:
        """Do what is not done, and show all; how many videos or cases failed."""
        todo = [case for case in self.cases if self.done[case.name] is None]
        for case in self.cases:
            if case not in todo:
                self.console.print(f"{case.folder}: finished before, kept")
        if todo:
            check_room(folder, sum(map(expected_room, todo)))
            with told_if_interrupted(lambda: self._so_far(folder)), logging_to(self.console):
                pipe = load(self.target, todo[0].request, self.console)
                for attention in self.attentions:
                    attention.attach(pipe).remove()  # tells what does not fit the model before a video is made
                if warm_up:
                    # An attention with dense steps has dense attention warmed up as well.
                    dense = [] if any(attention.has_dense_steps for attention in self.attentions) else [DENSE]
                    for attention in (*dense, *self.attentions):
                        try_warm_up(self.console, pipe, [todo[0].request], attention)
                self._make_all(pipe, todo)
        finished = [data for case in self.cases if (data := self.done[case.name]) is not None]
        if finished:
            failed = [{"name": name, "error": reason(error)} for name, error in self.errors.items()]
            write_summary(folder, finished, failed, surroundings(self.target.device))
            self._show(finished)
        return self._show_failures(finished)

    def _make_all(self, pipe: DiffusionPipeline, todo: Sequence[Case]) -> None:
        videos = 1 + len(self.attentions) + (self.ceiling is not None)
        with VideoProgress(self.console, len(todo) * videos) as progress:
            for case in todo:
                try:
                    check_room(case.folder, expected_room(case))
                    comparison = compare_attentions(
                        pipe,
                        case.request,
                        self.attentions,
                        ceiling=self.ceiling,
                        on_start=partial(progress.start_video, steps=case.request.num_inference_steps),
                        on_end=progress.end_video,
                    )
                    self.done[case.name] = write_case(case, comparison, surroundings(self.target.device))
                except Exception as error:
                    logger.debug("%s failed", case.folder, exc_info=True)
                    self.errors[case.name] = error
                    self.console.print(f"{case.folder}: failed: {reason(error)}")
                else:
                    self.console.print(f"{case.folder}: done")

    def _so_far(self, folder: Path) -> str:
        """What an interrupted run has made, what not, and how the rest comes about."""
        missing = [case.name or repr(case.request.prompt) for case in self.cases if self.done[case.name] is None]
        made = len(self.cases) - len(missing)
        return (
            f"{made} of {len(self.cases)} cases made; not made: {few(missing)}; the same command goes on with these; "
            f"files in {folder}"
        )

    def _show(self, finished: Sequence[Data]) -> None:
        columns = summarise(finished)
        one = finished[0]["settings"]["prompt"] if len(finished) == 1 else None
        table = Table("", title=one or f"means over {len(finished)} cases ± standard error")
        for column in columns:
            table.add_column(column.heading, justify="right")
        for row in table_rows(columns):
            table.add_row(*row)
        for _, verdict in judge(columns):
            self.console.print(str(verdict))
        print_table(self.console, table)
        for note in notes(columns):
            self.console.print(note)
        if self.target.device.type == "cpu" and (wanted := others_at_work()) is not None:
            self.console.print(
                f"Other programs were at work ({wanted:.1f} processes for {os.cpu_count()} processors), for which the "
                "many small products of sparse attention wait more often than dense attention: OMP_WAIT_POLICY=passive "
                "helps"
            )

    def _show_failures(self, finished: Sequence[Data]) -> int:
        """Says what failed, and where files are if there are any; returns how many videos or cases failed."""
        lost = [
            f"{case.folder} ({case.request.prompt}): {reason(self.errors[case.name])}"
            for case in self.cases
            if case.name in self.errors
        ]
        for data in finished:
            lost += [f"{data['name'] or 'case'}, {missing['label']}: {missing['error']}" for missing in data["missing"]]
        if lost:
            self.console.print("\n  ".join([f"{len(lost)} failed:", *lost]))
        if finished:
            first = self.cases[0].folder
            self.console.print(f"Files: {first if len(self.cases) == 1 else first.parent}")
        return len(lost)
