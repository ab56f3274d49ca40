"""Errors that a person can mend, and interrupts, shown in one line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

_MENDABLE = (ValueError, TypeError, OSError, ImportError, NotImplementedError)


class _Stopped(KeyboardInterrupt):
    """Another signal than Ctrl-C's that ends a process."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def errors_in_one_line(*, debug: bool) -> Iterator[None]:
    """Shows an error without its traceback and leaves with exit code 1, unless `debug` lets it through.

    An interrupt, Ctrl-C or a request to end, unwinds what is in work and leaves with 128 + the signal's number.
    """
    try:
        with _ends_as_interrupts():
            yield
    except KeyboardInterrupt as stop:
        so_far = stop if stop.args else "nothing was written; the same command starts again"
        typer.echo(f"interrupted: {so_far}", err=True)
        raise typer.Exit(128 + (stop.number if isinstance(stop, _Stopped) else signal.SIGINT)) from None
    except _MENDABLE as error:
        if debug:
            raise
        typer.echo(f"error: {error or type(error).__name__}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def told_if_interrupted(so_far: Callable[[], str]) -> Iterator[None]:
    """Lets an interrupt of the block say what is done, what is not, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (so_far(),)
        raise


@contextmanager
def _ends_as_interrupts() -> Iterator[None]:
    """Lets the end of a terminal or a polite `kill` be what Ctrl-C is, so that nothing half done stays behind."""

    def stop(number: int, _: Any) -> None:
        raise _Stopped(number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    mine = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # `nohup` ignores SIGHUP
    for number in mine:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
