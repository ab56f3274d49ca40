"""Comparisons of several prompts and seeds: means and standard errors, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from psa_triton.tools.evaluation.measures import MEASURES

Entry = Mapping[str, Any]
"""A video's part of a saved case: its `cost`, and its `fidelity` to the dense one unless it is that."""


@dataclass(frozen=True)
class Quantity:
    """A row of the table.

    Attributes:
        label: what people call it.
        form: format of its values.
    """

    label: str
    form: str


QUANTITIES: Mapping[str, Quantity] = {
    "tokens": Quantity("tokens", ",.0f"),
    "attention_density": Quantity("density of sparse attention", ".1%"),
    "attention_density_with_estimation": Quantity("density with cost of estimation", ".1%"),
    "run_density_with_estimation": Quantity("density over the whole run", ".1%"),
    "measured_error": Quantity("measured error of attention", ".3f"),
    "attention_seconds": Quantity("self-attention, s", ".2f"),
    "transformer_seconds": Quantity("transformer, s", ".2f"),
    "total_seconds": Quantity("total, s", ".2f"),
    "attention_speedup": Quantity("self-attention, times as fast", ".2f"),
    "total_speedup": Quantity("total, times as fast", ".2f"),
    **{name: Quantity(measure.label, f".{measure.digits}f") for name, measure in MEASURES.items()},
}
"""What is averaged, in the order of the table."""


@dataclass(frozen=True)
class Average:
    """Mean over the cases.

    Attributes:
        mean: of the cases that have a value.
        standard_error: of the mean; None for a single case.
        count: cases with a value.
    """

    mean: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class Column:
    """All cases of one way to attend.

    Attributes:
        label: of the way.
        role: `dense`, `ceiling` or `psa`.
        averages: by name of the quantity; None where no case has a value.
        notes: what to know of a quantity, by its name.
    """

    label: str
    role: str
    averages: Mapping[str, Average | None]
    notes: Mapping[str, str]

    @property
    def heading(self) -> str:
        """The label, and that a ceiling is one."""
        return f"ceiling ({self.label})" if self.role == "ceiling" else self.label

    def mean(self, quantity: str) -> float | None:
        """Mean of a quantity; None where there is none."""
        average = self.averages[quantity]
        return None if average is None else average.mean


def summarise(cases: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Averages over saved cases: dense, dense again, then each candidate; the same number of columns for all rows.

    Args:
        cases: as `case_data` makes them; a video that failed is missing in its case, and in the averages.
    """
    found: dict[tuple[str, str], list[tuple[Entry, Entry]]] = {}
    for case in cases:
        for role, label, entry in _entries(case):
            found.setdefault((role, label), []).append((case["dense"], entry))
    columns = []
    for (role, label), pairs in found.items():
        values = [_values(role, dense, entry) for dense, entry in pairs]
        averages = {name: _average([value[name] for value in values]) for name in QUANTITIES}
        remarks: dict[str, str] = {}
        for name, note in dict.fromkeys(item for _, entry in pairs for item in _notes(role, entry).items()):
            remarks[name] = f"{remarks[name]}; {note}" if name in remarks else note
        columns.append(Column(label, role, averages, remarks))
    return columns


def _entries(case: Mapping[str, Any]) -> Iterator[tuple[str, str, Entry]]:
    """Role, label and numbers of every video of a case."""
    yield "dense", "dense", case["dense"]
    if case["ceiling"] is not None:
        yield "ceiling", case["ceiling"]["label"], case["ceiling"]
    for entry in case["candidates"]:
        yield "psa", entry["label"], entry


def _notes(role: str, entry: Entry) -> dict[str, str]:
    """What to know of a video's numbers, or why there are none."""
    scores = entry.get("fidelity", {})
    notes = {name: score["note"] for name, score in scores.items() if score["note"] is not None}
    if role == "psa" and entry["cost"]["attention_density"] is None:
        reasons = ", ".join(entry["cost"]["dense_reasons"])
        notes["attention_density"] = f"{entry['label']} ran dense throughout ({reasons})"
    return notes


def _values(role: str, dense: Entry, entry: Entry) -> dict[str, float | None]:
    known: dict[str, float | None] = {name: score["mean"] for name, score in entry.get("fidelity", {}).items()}
    if role != "ceiling":  # which is no competitor: how long it took says nothing of PSA
        cost, reference = ({**x["cost"], "attention_seconds": _attention_seconds(x["cost"])} for x in (entry, dense))
        known |= cost
        if role == "psa":
            for part in ("attention", "total"):
                known[f"{part}_speedup"] = reference[f"{part}_seconds"] / cost[f"{part}_seconds"]
    return {name: known.get(name) for name in QUANTITIES}


def _attention_seconds(cost: Mapping[str, float]) -> float:
    return cost["sparse_attention_seconds"] + cost["dense_attention_seconds"]


def _average(values: Sequence[float | None]) -> Average | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Average(fmean(known), error, len(known))


def table_rows(columns: Sequence[Column]) -> list[list[str]]:
    """A row a quantity: its label, then a cell a column; rows without any value are left out."""
    rows = []
    for name, quantity in QUANTITIES.items():
        if any(column.averages[name] is not None for column in columns):
            rows.append([quantity.label, *(_cell(column, name) for column in columns)])
    return rows


def notes(columns: Sequence[Column]) -> list[str]:
    """What to know of rows, or why they are missing: a line each."""
    found = dict.fromkeys(item for column in columns for item in column.notes.items())
    return [f"{QUANTITIES[name].label}: {note}" for name, note in found]


def markdown(columns: Sequence[Column], *, cases: int) -> str:
    """The table in Markdown, with its notes."""
    rows = [["", *(column.heading for column in columns)], ["---", *("---:" for _ in columns)]]
    rows += table_rows(columns)
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    means = f"Means over {cases} cases (prompts x seeds) ± standard error." if cases > 1 else "One prompt, one seed."
    remarks = [f"* {note}" for note in notes(columns)]
    return "\n".join([*lines, "", means, *(["", *remarks] if remarks else [])]) + "\n"


def _cell(column: Column, quantity: str) -> str:
    average, form = column.averages[quantity], QUANTITIES[quantity].form
    if average is None:
        return "-"
    error = "" if average.standard_error is None else f" ± {average.standard_error:{form}}"
    return f"{average.mean:{form}}{error}"


def pace(speedup: float) -> str:
    """How many times as fast or slow, in words; `as fast` within what times vary from run to run."""
    if 0.95 < speedup < 1.05:
        return "as fast"
    return f"{speedup:.2f} times as fast" if speedup > 1 else f"{1 / speedup:.2f} times as slow"
