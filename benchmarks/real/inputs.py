"""Which tensors the methods are measured on, and how they are cut into blocks there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from tensors import AttentionTensors
from tensors.adversarial import CASES, adversarial_tensors
from tensors.bundle import Grid
from tensors.frames import CLIPS
from tensors.tiny_wan import tiny_wan_cases
from tensors.vit import LAYERS, VARIANTS, vit_cases

from real.methods import GROUPS, WITHOUT_GRID_CHOICES, Method, settings

QUICK_GRID: Final[Grid] = (4, 16, 16)


@dataclass(frozen=True)
class InputSet:
    """Inputs over which errors are averaged."""

    name: str
    cases: Callable[[], Iterable[AttentionTensors]]
    groups: tuple[str, ...]
    """Of `GROUPS`."""
    block_m: int = 128
    block_n: int | None = None
    """Instead of the methods' own, for sequences too short for them."""

    def methods(self) -> Iterator[tuple[str, str, Method]]:
        """Group, name, and the nameless method as it is run here."""
        for group in self.groups:
            for method in GROUPS[group]:
                run = settings(method if self.block_n is None else replace(method, block_n=self.block_n))
                if max(*run.weights, run.rest) <= run.block_n:
                    yield group, method.name, run


def vit_sets(*, quick: bool) -> list[InputSet]:
    """Both clips, with and without rotary embedding."""
    groups = tuple(GROUPS)
    if quick:
        cases = partial(vit_cases, layers=LAYERS[1:2], grid=QUICK_GRID)
        return [InputSet("bikes/rope", partial(cases, clips=("bikes",), variants=("rope",)), groups, block_m=32)]
    return [
        InputSet(f"{clip}/{variant}", partial(vit_cases, clips=(clip,), variants=(variant,)), groups)
        for clip in CLIPS
        for variant in VARIANTS
    ]


def other_sets(*, quick: bool) -> list[InputSet]:
    """The built-in video model's own attention, and inputs made to break sparse attention."""
    sets = [] if quick else [InputSet("tiny-wan", tiny_wan_cases, WITHOUT_GRID_CHOICES, block_m=32, block_n=32)]
    grid = {"grid": QUICK_GRID} if quick else {}
    block_m = 32 if quick else 128
    return sets + [InputSet(case, partial(_made, case, grid), WITHOUT_GRID_CHOICES, block_m=block_m) for case in CASES]


def _made(case: str, grid: dict[str, Grid]) -> list[AttentionTensors]:
    return [adversarial_tensors(case, **grid)]
