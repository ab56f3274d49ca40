"""Two checkouts of this library on one warm device, in turn, so that neither has it warmer than the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = 3


def compare(old_ref: str, script: Path, minutes: float) -> dict[str, dict[str, list[float]]]:
    """What `--quick` measures of both, by name: `{"old": [...], "new": [...]}`, a number a round.

    Args:
        old_ref: a commit, or a folder with another checkout.
        script: that is run, of the newer checkout, the same for both.
        minutes: after which no further round begins.
    """
    checkout = script.resolve().parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        old = Path(old_ref).resolve()
        if not old.is_dir():
            old = Path(scratch, "old")
            subprocess.run(["git", "-C", checkout, "worktree", "add", "--detach", old, old_ref], check=True)
        try:
            rounds = [(n, name, tree) for n in range(ROUNDS) for name, tree in (("old", old), ("new", checkout))]
            found: dict[str, dict[str, list[float]]] = {}
            for n, name, tree in rounds:
                output = Path(scratch, f"{name}{n}")
                # The first round compiles; its figures hold no compilation and count as the others.
                command = [sys.executable, script, "--quick", "--minutes", str(minutes / len(rounds))]
                # It ends with 1 where a piece failed: what both have is compared all the same.
                subprocess.run([*command, "--output", output], env=os.environ | {"PSA_CHECKOUT": str(tree)})
                for figure, value in figures(json.loads(next(output.glob("*.json")).read_text())["pieces"]):
                    found.setdefault(figure, {"old": [], "new": []})[name].append(value)
            return found
        finally:
            if old.parent == Path(scratch):
                subprocess.run(["git", "-C", checkout, "worktree", "remove", "--force", old], check=True)


def figures(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in nested dicts, by the path to them."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from figures(value, f"{name}: {key}" if name else key)
    elif isinstance(found, (int, float)):
        yield name, float(found)


def rows(found: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Figure, medians of both, their ratio, and the larger of the spreads, of figures that both have."""
    lines = []
    for figure, of in found.items():
        if of["old"] and of["new"]:
            old, new = median(of["old"]), median(of["new"])
            spread = max((max(x) - min(x)) / max(median(x), 1e-9) for x in of.values())
            lines.append([figure, f"{old:.3f}", f"{new:.3f}", f"{new / old:.3f}" if old else "-", f"{spread:.1%}"])
    return lines
