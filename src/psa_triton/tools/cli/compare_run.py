"""A run of `psa compare`: the cases that are left to do, with progress, and how they went."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from rich.console import Console
from rich.table import Table

from psa_triton.tools.cli.errors import told_if_interrupted
from psa_triton.tools.cli.outcome import few, reason
from psa_triton.tools.cli.progress import VideoProgress, logging_to
from psa_triton.tools.cli.target import Target
from psa_triton.tools.evaluation import (
    Case,
    Ceiling,
    Column,
    compare_attentions,
    expected_room,
    notes,
    read_finished,
    sentence,
    summarise,
    table_rows,
    write_case,
    write_summary,
)
from psa_triton.tools.files import Hold, check_room, output_folder
from psa_triton.tools.generation import DENSE, Attention, surroundings, warm_up

logger = logging.getLogger("psa_triton")

Data = Mapping[str, Any]


@dataclass(frozen=True)
class CompareRun:
    """What is compared: the model, the attentions, how dense attention is made again, after an untimed step or not."""

    target: Target
    attentions: Sequence[Attention]
    ceiling: Ceiling | None
    warm_up: bool

    def model_settings(self) -> dict[str, Any]:
        """Which weights run, where and in which type."""
        target = self.target
        return {
            "model": target.source.name,
            "weights": target.source.weights,
            "lora": None if target.lora is None else target.lora.as_dict(),
            "device": target.device.type,
            "dtype": str(target.dtype).removeprefix("torch."),
        }

    def make(self, cases: Sequence[Case], folder: Path, *, overwrite: bool) -> int:
        """Do the cases that are not done yet, write the summary of all, and show it; returns how many failed.

        Raises:
            OSError: the folder cannot be made or written, or has no room; known before the model is loaded.
            TakenError: another process compares into it.
            ValueError: a case is there that was made with other settings.
        """
        with output_folder(folder, room=0), Hold(folder):
            return self._make_in(cases, folder, overwrite=overwrite)

    def _make_in(self, cases: Sequence[Case], folder: Path, *, overwrite: bool) -> int:
        console = Console(highlight=False, markup=False, soft_wrap=True)
        done: dict[str, Data | None] = {case.name: read_finished(case, overwrite=overwrite) for case in cases}
        todo = [case for case in cases if done[case.name] is None]
        for case in cases:
            if case not in todo:
                console.print(f"{case.folder}: finished before, kept")
        errors: dict[str, Exception] = {}
        if todo:
            check_room(folder, sum(map(expected_room, todo)))
            with told_if_interrupted(lambda: _so_far(cases, done, folder)), logging_to(console, verbose=False):
                pipe = self.target.load(todo[0].request, console)
                if self.warm_up:
                    self._warm_up(pipe, todo[0], console)
                self._make_all(pipe, todo, done, errors, console)
        finished = [data for case in cases if (data := done[case.name]) is not None]
        if finished:
            failed = [{"name": name, "error": reason(error)} for name, error in errors.items()]
            write_summary(folder, finished, failed, surroundings(self.target.device))
            _show(finished, console)
        return _show_failures(cases, finished, errors, console)

    def _warm_up(self, pipe: DiffusionPipeline, case: Case, console: Console) -> None:
        # An attention with dense steps has dense attention warmed up as well.
        dense = [] if any(attention.has_dense_steps for attention in self.attentions) else [DENSE]
        for attention in (*dense, *self.attentions):
            try:
                with console.status("warming up"):
                    warm_up(pipe, [case.request], attention)
            except Exception as error:  # the run itself will tell which video cannot be made
                logger.warning("the untimed first step failed (%s): times hold what is done only once", reason(error))

    def _make_all(
        self,
        pipe: DiffusionPipeline,
        todo: Sequence[Case],
        done: dict[str, Data | None],
        errors: dict[str, Exception],
        console: Console,
    ) -> None:
        videos = 1 + len(self.attentions) + (self.ceiling is not None)
        with VideoProgress(console, len(todo) * videos) as progress:
            for case in todo:
                try:
                    check_room(folder=case.folder, room=expected_room(case))
                    done[case.name] = self._make(pipe, case, progress)
                except Exception as error:
                    logger.debug("%s failed", case.folder, exc_info=True)
                    errors[case.name] = error
                    console.print(f"{case.folder}: failed: {reason(error)}")
                else:
                    console.print(f"{case.folder}: done")

    def _make(self, pipe: DiffusionPipeline, case: Case, progress: VideoProgress) -> Data:
        comparison = compare_attentions(
            pipe,
            case.request,
            self.attentions,
            ceiling=self.ceiling,
            on_start=partial(progress.start_video, steps=case.request.num_inference_steps),
            on_end=progress.end_video,
        )
        return write_case(case, comparison, surroundings(self.target.device))


def _so_far(cases: Sequence[Case], done: Mapping[str, Data | None], folder: Path) -> str:
    """What an interrupted run has made, what not, and how the rest comes about."""
    made = sum(done[case.name] is not None for case in cases)
    missing = [case.name or repr(case.request.prompt) for case in cases if done[case.name] is None]
    return (
        f"{made} of {len(cases)} cases made; not made: {few(missing) or 'none'}; the same command goes on with these; "
        f"files in {folder}"
    )


def _show(finished: Sequence[Data], console: Console) -> None:
    columns = summarise(finished)
    prompts = {data["settings"]["prompt"] for data in finished}
    title = prompts.pop() if len(finished) == 1 else f"means over {len(finished)} cases ± standard error"
    console.print(_table(title, columns))
    for note in notes(columns):
        console.print(note)
    for column in columns:
        if column.role == "psa":
            console.print(sentence(columns, column))


def _table(title: str, columns: Sequence[Column]) -> Table:
    table = Table("", title=title)
    for column in columns:
        table.add_column(column.label, justify="right")
    for row in table_rows(columns):
        table.add_row(*row)
    return table


def _show_failures(
    cases: Sequence[Case], finished: Sequence[Data], errors: Mapping[str, Exception], console: Console
) -> int:
    """Says what failed and where the files are; returns how many videos or cases failed."""
    lost = [
        f"{case.folder} ({case.request.prompt}): {reason(errors[case.name])}" for case in cases if case.name in errors
    ]
    for data in finished:
        lost += [f"{data['name'] or 'case'}, {missing['label']}: {missing['error']}" for missing in data["missing"]]
    if lost:
        console.print(f"{len(lost)} failed:")
    for line in lost:
        console.print(f"  {line}")
    console.print(f"Files: {cases[0].folder if len(cases) == 1 else cases[0].folder.parent}")
    return len(lost)
