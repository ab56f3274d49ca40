"""What all benchmarks share: their options, what figures were made with, and the files that they leave.

Times side by side are `psa_triton.tools.clock`'s, peak memory is `psa_triton.tools.bench.memory`'s.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from psa_triton.tools.files import staged, write_file
from psa_triton.tools.machine import hardware, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS: Final = Path(__file__).parent / "results"
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU: Final = torch.device("cpu")

Report = dict[str, Any]
"""What a run was made with (date, command, hardware, versions, seconds), and what it found."""


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows `--output`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser


def made_with(name: str, device: torch.device = CPU) -> Report:
    """When and by which command the script `name` runs, on which hardware, with which versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "hardware": hardware(device),
        "versions": versions(),
    }


class Run:
    """One run of a benchmark: pieces that are measured one after another, then its files.

    Args:
        name: of the script, and of its files, which get the date and the name of the GPU too.
        output: their folder.
        device: that is measured.
        mode: of the script, if it has several; a part of its files' names.
    """

    def __init__(self, name: str, output: Path, device: torch.device = CPU, mode: str = "") -> None:
        self._made_with = made_with(name, device)
        self._began = time.monotonic()
        self._pieces: dict[str, Any] = {}
        stem = f"{name}_{mode}" if mode else name
        self._kept = output / f".{stem}.part.json"
        gpu = self._made_with["hardware"]["gpu"]
        suffix = f"_{gpu.lower().replace(' ', '-')}" if gpu else ""
        self._stem = output / f"{stem}_{self._made_with['date'][:10]}{suffix}"
        self._go_on()

    def piece(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """What `measure` finds, given the arguments, as JSON has it.

        It is kept in the folder until `write`. If the run is interrupted, the same command on the same machine and
        versions goes on after its last piece.
        """
        if name not in self._pieces:
            self._pieces[name] = json.loads(json.dumps(measure(*arguments)))
            kept = {"made_with": self._made_with, "pieces": self._pieces}
            write_file(self._kept, json.dumps(kept).encode())
            print(f"{name}: measured", flush=True)
        return self._pieces[name]

    def write(
        self,
        found: Report,
        page: Callable[[Report], str],
        draw: Callable[[Report], Figure] | None = None,
        *,
        last: bool = True,
    ) -> None:
        """Write `found`, with all that it was made with, as JSON, Markdown and perhaps a picture, and show the page.

        Args:
            found: plain data.
            page: the report as Markdown; a picture's name is `report["picture"]`.
            draw: the report as a picture.
            last: whether no more pieces come; until then the page is not shown, and an interrupted run goes on.
        """
        report = self._made_with | {"seconds": round(time.monotonic() - self._began)} | found
        with staged() as files:
            if draw is not None:
                report["picture"] = f"{self._stem.name}.png"
                png = BytesIO()
                draw(report).savefig(png, format="png", dpi=110)
                files.write(self._file("png"), png.getvalue())
            text = page(report)
            files.write(self._file("md"), text.encode())
            files.write(self._file("json"), (json.dumps(report, indent=1) + "\n").encode())
        if last:
            self._kept.unlink(missing_ok=True)
            print(f"{text}\nwritten: {self._stem}.*")

    def _file(self, kind: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{kind}")

    def _go_on(self) -> None:
        if not self._kept.is_file():
            return
        before = json.loads(self._kept.read_text())
        made_with = before["made_with"]
        if all(made_with[name] == self._made_with[name] for name in ("command", "hardware", "versions")):
            self._pieces = before["pieces"]
            print(f"going on after {len(self._pieces)} pieces of {made_with['date']}; they are in {self._kept}")


def heading(report: Report, title: str, *words: str) -> list[str]:
    """The first lines of a page: title and date, how it was made, what it shows."""
    machine, torch_version = report["hardware"], report["versions"]["torch"]
    made = f"`{report['command']}`; {machine['gpu'] or machine['cpu']}, threads: {machine['threads']}, "
    return [f"# {title}, {report['date'][:10]}", "", f"{made}torch {torch_version}, {report['seconds']} s.", "", *words]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; the first column is aligned left, the others right. It reads well in a terminal, too."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = [f":{'-' * (widths[0] + 1)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    return [line(lines[0]), f"|{'|'.join(rule)}|", *map(line, lines[1:])]


def table_of(cases: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """`table` with a row a case: `columns` names what `str.format` makes of it, such as `"{speedup:.1f}x"`."""
    return table(list(columns), [[cell.format_map(case) for cell in columns.values()] for case in cases])


def curves(
    points: Iterable[tuple[str, str, float, float]], x: str, y: str, *, log_y: bool = True, line: float | None = None
) -> Figure:
    """Panels with curves over a logarithmic axis, at most four beside each other.

    Args:
        points: title of the panel, label of the curve, and its place.
        x, y: labels of the axes.
        log_y: whether that of `y` is logarithmic too; else it begins at 0.
        line: where on the axis of `x` a grey line stands.
    """
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for title, label, *place in points:
        panels.setdefault(title, {}).setdefault(label, []).append(tuple(place))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.8 * columns, 4.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel in axes[len(panels) :]:
        panel.remove()
    for panel, (title, drawn) in zip(axes, panels.items(), strict=False):
        for (label, places), marker in zip(drawn.items(), cycle("osD^vP*X<>hpd8H"), strict=False):
            panel.plot(*zip(*sorted(places), strict=True), marker=marker, markersize=4, label=label)
        if line is not None:
            panel.axvline(line, color="0.85", zorder=0)
        panel.set(title=title, xscale="log", **({"yscale": "log"} if log_y else {"ylim": (0, None)}))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, framealpha=0.8)
    figure.supxlabel(x)
    figure.supylabel(y)
    return figure
