"""Errors that a person can mend, shown in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

_MENDABLE = (ValueError, TypeError, OSError, ImportError, NotImplementedError)


@contextmanager
def errors_in_one_line(*, debug: bool) -> Iterator[None]:
    """Shows an error without its traceback and leaves with exit code 1, unless `debug` lets it through."""
    try:
        yield
    except _MENDABLE as error:
        if debug:
            raise
        typer.echo(f"error: {error or type(error).__name__}", err=True)
        raise typer.Exit(1) from error
