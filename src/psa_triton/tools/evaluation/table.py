"""A summary in words: table cells, Markdown, one sentence a preset."""

from __future__ import annotations

from collections.abc import Sequence

from psa_triton.tools.evaluation.measures import PSNR_CAP
from psa_triton.tools.evaluation.summary import QUANTITIES, Column


def table_rows(columns: Sequence[Column]) -> list[list[str]]:
    """A row a quantity: its label, then a cell a column; rows without any value are left out."""
    rows = []
    for name, quantity in QUANTITIES.items():
        if any(column.averages[name] is not None for column in columns):
            rows.append([quantity.label, *(_cell(column, name) for column in columns)])
    return rows


def notes(columns: Sequence[Column]) -> list[str]:
    """What to know of rows, or why they are missing: a line each."""
    found = {name: note for column in columns for name, note in column.notes.items()}
    return [f"{QUANTITIES[name].label}: {note}" for name, note in found.items()]


def markdown(columns: Sequence[Column], *, cases: int) -> str:
    """The table in Markdown, with its notes."""
    rows = [["", *(column.label for column in columns)], ["---", *("---:" for _ in columns)]]
    rows += [[cell.strip() for cell in row] for row in table_rows(columns)]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    means = f"Means over {cases} cases (prompts x seeds) ± standard error." if cases > 1 else "One prompt, one seed."
    remarks = [f"* {note}" for note in notes(columns)]
    return "\n".join([*lines, "", means, *(["", *remarks] if remarks else [])]) + "\n"


def sentence(columns: Sequence[Column], candidate: Column) -> str:
    """What came out for one candidate, in plain words."""
    dense = next(column for column in columns if column.role == "dense")
    ceiling = next((column for column in columns if column.role == "ceiling"), None)
    density, run = candidate.mean("attention_density"), candidate.mean("run_density_with_estimation")
    if density is None or run is None:
        return f"{candidate.label} ran dense throughout, so there is nothing to compare."
    psnr, ssim = candidate.mean("psnr"), candidate.mean("ssim")
    near = (
        "the same frames as dense attention"
        if psnr is None or psnr >= PSNR_CAP
        else f"frames {psnr:.1f} dB (PSNR) from dense attention's, SSIM {ssim:.3f}"
    )
    bound = "" if ceiling is None else f" ({ceiling.label} is {ceiling.mean('psnr'):.1f} dB from it)"
    seconds, before = candidate.mean("attention_seconds"), dense.mean("attention_seconds")
    return (
        f"{candidate.label} did {density:.1%} of the attention work in its sparse layers "
        f"({run:.1%} over the whole run, with estimation) and made {near}{bound}; self-attention layers took "
        f"{seconds:.1f} s instead of {before:.1f} s: {_pace(candidate.mean('attention_speedup') or 1)}."
    )


def _cell(column: Column, quantity: str) -> str:
    average, form = column.averages[quantity], QUANTITIES[quantity].form
    if average is None:
        return "-"
    error = "" if average.standard_error is None else f" ± {average.standard_error:{form}}"
    return f"{average.mean:{form}}{error}"


def _pace(speedup: float) -> str:
    if 0.95 < speedup < 1.05:  # within what times vary from run to run
        return "as fast"
    return f"{speedup:.2f} times as fast" if speedup > 1 else f"{1 / speedup:.2f} times as slow"
