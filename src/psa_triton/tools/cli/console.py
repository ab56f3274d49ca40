"""How the commands tell what they do: lines, progress bars, and the library's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import DiffusionPipeline
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from psa_triton.tools.generation.attention import Attention
from psa_triton.tools.generation.request import VideoRequest
from psa_triton.tools.generation.single import OnStep, warm_up

logger = logging.getLogger("psa_triton")

_SHOWN = 5
"""Names of a list that are shown."""


def make_console(*, bars: bool = True) -> Console:
    """Where a command tells how it goes: in lines, and with `bars` in bars too if its output is a terminal."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, force_terminal=None if bars else False)


def reason(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def few(names: Sequence[str]) -> str:
    """Some names, and how many more there are; `none` where there are none."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more or "none"


def try_warm_up(
    console: Console, pipe: DiffusionPipeline, requests: Sequence[VideoRequest], attention: Attention
) -> None:
    """An untimed step; where it fails, the run itself will tell which video cannot be made."""
    try:
        with console.status("warming up"):
            warm_up(pipe, requests, attention)
    except Exception as error:
        logger.warning("the untimed first step failed (%s): times hold what is done only once", reason(error))


class VideoProgress(Progress):
    """Two bars, videos and the steps of the one in work, with its measured error; none where output is no terminal.

    Args:
        console: where they are drawn; lines printed to it meanwhile appear above them.
        videos: how many videos there are to make.
    """

    def __init__(self, console: Console, videos: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        measured = TextColumn("{task.fields[measured]}")
        super().__init__(*columns, measured, console=console, transient=True, disable=not console.is_terminal)
        self._videos = self.add_task("videos", total=videos, measured="")
        self._steps = self.add_task("steps", total=None, measured="")

    def start_video(self, name: str, steps: int) -> OnStep:
        """A video begins; what comes back is to be told of each denoising step."""
        self.reset(self._steps, total=steps, description=name, measured="")

        def step_done(done: int, error: float | None) -> None:
            measured = "" if error is None else f"measured error {error:.3f}"
            self.update(self._steps, completed=done, measured=measured)

        return step_done

    def end_video(self) -> None:
        """The video is done, or has failed."""
        self.advance(self._videos)


class _ConsoleHandler(logging.Handler):
    """Prints above the progress bars of a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record))


@contextmanager
def logging_to(console: Console, *, verbose: bool = False) -> Iterator[None]:
    """Shows the library's log on `console`: warnings, and with `verbose` every sparse attention call."""
    before = logger.level
    handler = _ConsoleHandler(console)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
