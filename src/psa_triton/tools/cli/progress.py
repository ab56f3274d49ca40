"""Progress bars and the log of the commands that make videos."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from psa_triton.tools.generation import Job, OnStep, Processes


def make_console(processes: Processes) -> Console:
    """Where a process tells how it goes: in lines, and in bars if it is the main one and its output a terminal."""
    force_terminal = None if processes.is_main else False
    return Console(highlight=False, markup=False, soft_wrap=True, force_terminal=force_terminal)


class VideoProgress:
    """Two bars, videos and the steps of the one in work, gone when done; none where output is no terminal.

    A context manager.

    Args:
        console: where they are drawn; lines printed to it meanwhile appear above them.
        videos: how many videos there are to make.
    """

    def __init__(self, console: Console, videos: int) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._videos = self._bars.add_task("videos", total=videos)
        self._steps = self._bars.add_task("steps", total=None)

    def __enter__(self) -> VideoProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start_video(self, name: str, steps: int) -> OnStep:
        """A video begins; what comes back is to be told of each denoising step."""
        self._bars.reset(self._steps, total=steps, description=name)
        return lambda done: self._bars.update(self._steps, completed=done)

    def start_batch(self, jobs: Sequence[Job]) -> OnStep:
        """Videos that are made together begin."""
        first, last = jobs[0], jobs[-1]
        name = first.path.name if first is last else f"{first.path.name} to {last.path.name}"
        return self.start_video(name, first.request.num_inference_steps)

    def end_video(self) -> None:
        """The video is done, or has failed."""
        self._bars.advance(self._videos)


class _ConsoleHandler(logging.Handler):
    """Prints above the progress bars of a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record))


@contextmanager
def logging_to(console: Console, *, verbose: bool) -> Iterator[None]:
    """Shows the library's log on `console`: warnings, and with `verbose` every sparse attention call."""
    logger = logging.getLogger("psa_triton")
    before = logger.level
    handler = _ConsoleHandler(console)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
