"""Tables that the commands show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table


def make_table(
    columns: Iterable[str],
    rows: Iterable[Iterable[RenderableType]],
    *,
    title: str | None = None,
    column: Mapping[str, Any] | None = None,
    **style: Any,
) -> Table:
    """A table of numbers; `column` and `style` are what rich calls its columns' and its own arguments."""
    table = Table(title=title, box=SIMPLE_HEAD, **style)
    for heading in columns:
        table.add_column(heading, justify="right", **(column or {}))
    for row in rows:
        table.add_row(*row)
    return table


def print_table(console: Console, table: Table) -> None:
    """Show a table without cutting a word or number: in a terminal too narrow for it, its lines go on below."""
    for column in table.columns:
        words = " ".join(map(str, (column.header, *column.cells))).split()
        column.min_width = max(column.min_width or 0, max(map(len, words), default=0))
    console.print(table, soft_wrap=True)
