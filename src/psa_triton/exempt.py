"""Exempt tokens: read in full by every query, reading everything in full, or both; text, audio, references, sinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor

from psa_triton.inputs import as_int

Exempt: TypeAlias = Sequence[tuple[int, int]] | Tensor
"""Ranges of tokens, or int64 `[E]` positions, as callers give them."""
Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Tokens from each start up to its stop, which is not one of them; in ascending order, apart, none empty."""


@dataclass(frozen=True)
class Side:
    """The tokens of the queries, or those of the keys."""

    tokens: int
    """How many there are."""
    exempt: Ranges = ()
    """Queries that read everything in full; keys that every query reads in full."""
    aside: Ranges = ()
    """Tokens without a place in the grid: these, and those that are exempt on the other side alone."""

    @property
    def front(self) -> Ranges:
        """Where the exempt tokens stand once they are first."""
        return as_prefix(count(self.exempt))

    def pieces(self) -> Ranges:
        """Ranges in their order once the exempt tokens are first, then others without a place, then the grid's."""
        # No exempt range reaches over the edges of one aside.
        within = ([pair for pair in self.exempt if start <= pair[0] < stop] for start, stop in self.aside)
        others = (_gaps(pairs, *bounds) for pairs, bounds in zip(within, self.aside, strict=True))
        return *self.exempt, *chain.from_iterable(others), *_gaps(self.aside, 0, self.tokens)


def as_prefix(tokens: int) -> Ranges:
    """The first `tokens` ones."""
    return ((0, tokens),) if tokens else ()


def count(ranges: Ranges) -> int:
    """How many tokens there are in them."""
    return sum(stop - start for start, stop in ranges)


def as_ranges(name: str, value: Any, tokens: int) -> Ranges:
    """`value`, the argument called `name`, which says which of so many tokens are exempt.

    Args:
        name: of the argument.
        value: pairs (start, stop), which may overlap; or positions in a tensor of integers of one dimension.
        tokens: of the sequence.

    Raises:
        TypeError: it is neither.
        ValueError: it reaches beyond the tokens.
    """
    expected = f"{name}: expected ranges [(start, stop), ...] or positions in an int64 tensor [E], got"
    if isinstance(value, Tensor):
        if value.ndim != 1 or value.dtype == torch.bool or value.is_floating_point() or value.is_complex():
            came = f"{value.dtype} {tuple(value.shape)}"
            raise TypeError(f"{expected} {came}; a mask of tokens has its positions in .nonzero().flatten()")
        pairs = [(place, place + 1) for place in value.tolist()]
    else:
        try:
            pairs = [(as_int(name, start), as_int(name, stop)) for start, stop in value]
        except (TypeError, ValueError) as error:
            raise TypeError(f"{expected} {value!r}") from error
    for start, stop in pairs:
        if not 0 <= start <= stop <= tokens:
            raise ValueError(f"{name}: expected 0 <= start <= stop <= {tokens}, the tokens, got ({start}, {stop})")
    return _merged(pairs)


def find_sides(
    queries: int,
    keys: int,
    grid: Any,
    prefix_tokens: int = 0,
    exempt: Any = (),
    exempt_keys: Any = (),
    exempt_queries: Any = (),
) -> tuple[tuple[int, int, int] | None, Side, Side]:
    """The grid, the queries and the keys, once it is known that they fit each other.

    With a grid the last of the keys that are left are its own. What stands before these, where there are more keys
    than queries, is exempt.

    Args:
        queries, keys: how many tokens there are.
        grid: of the tokens that are not exempt; None for none.
        prefix_tokens: of queries and keys, at the start.
        exempt: of both.
        exempt_keys, exempt_queries: of one.

    Raises:
        TypeError: one of them is of a wrong type.
        ValueError: they do not fit.
    """
    prefix_tokens, fewer = as_int("prefix_tokens", prefix_tokens), min(queries, keys)
    if not 0 <= prefix_tokens <= fewer:
        raise ValueError(f"prefix_tokens: expected 0 to {fewer}, the number of tokens, got {prefix_tokens}")
    both = as_prefix(prefix_tokens) + as_ranges("exempt", exempt, fewer)
    of_queries = _merged([*both, *as_ranges("exempt_queries", exempt_queries, queries)])
    of_keys = _merged([*both, *as_ranges("exempt_keys", exempt_keys, keys)])
    if queries == keys:
        aside = of_keys if of_queries == of_keys else _merged([*of_queries, *of_keys])
        sides = Side(queries, of_queries, aside), Side(keys, of_keys, aside)
    else:
        sides = Side(queries, of_queries, of_queries), Side(keys, of_keys, of_keys)
    if grid is None:
        return None, *sides
    t, h, w = _as_grid(grid)
    surplus = max(keys - count(sides[1].aside) - t * h * w, 0) if keys > queries else 0
    if surplus:
        of_keys = _merged([*of_keys, *_first(_gaps(of_keys, 0, keys), surplus)])
        sides = sides[0], Side(keys, of_keys, of_keys)
    others_are = "prefix_tokens" if sides[0].aside == as_prefix(prefix_tokens) else "exempt tokens"
    for name, side in zip("qk", sides, strict=True):
        others = count(side.aside)
        if t * h * w + others != side.tokens:
            raise ValueError(
                f"grid: expected frames * height * width + {others_are} = {side.tokens}, the tokens of "
                f"{name}, got {t} * {h} * {w} + {others} = {t * h * w + others}; if tokens are dimension 1 of {name}, "
                "pass its transpose(1, 2)"
            )
    return (t, h, w), *sides


def _as_grid(grid: Any) -> tuple[int, int, int]:
    expected = "grid: expected three positive ints (frames, height, width), got"
    try:
        sizes = [as_int("grid", size) for size in grid]
    except TypeError as error:
        raise TypeError(f"{expected} {grid!r}") from error
    if len(sizes) != 3 or not all(size > 0 for size in sizes):
        raise ValueError(f"{expected} {grid!r}")
    return sizes[0], sizes[1], sizes[2]


def _merged(pairs: Sequence[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for start, stop in _sorted([pair for pair in pairs if pair[0] < pair[1]]):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def _sorted(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """`pairs` by their starts. In a graph, sizes that may change can be compared, and torch sorts none."""
    if not torch.compiler.is_compiling():
        return sorted(pairs)
    found: list[tuple[int, int]] = []
    for pair in pairs:
        place = len(found)
        while place and pair[0] < found[place - 1][0]:
            place -= 1
        found.insert(place, pair)
    return found


def _gaps(ranges: Sequence[tuple[int, int]], first: int, stop: int) -> Ranges:
    """The tokens from `first` up to `stop` that are in none of `ranges`."""
    edges = [first, *(edge for pair in ranges for edge in pair), stop]
    return tuple(pair for pair in zip(edges[::2], edges[1::2], strict=True) if pair[0] < pair[1])


def _first(ranges: Ranges, tokens: int) -> Ranges:
    """The first `tokens` tokens of `ranges`."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        stop = min(stop, start + tokens)
        tokens -= stop - start
        found.append((start, stop))
    return tuple(found)
