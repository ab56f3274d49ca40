"""Keys and values -> one flat pyramid: every resolution of every block, in one tensor of rows.

Levels follow one another, finest first; within a level, blocks follow one another; within a block, its groups. Every
block has room for `block_n / level` rows at each level, whatever its number of tokens: rows without a token are padding
(count 0). A *unit* is `block_n / 8` consecutive rows, so a block at level 1, 2, 4, 8 is 8, 4, 2, 1 whole units, and a
kernel that walks units needs to know nothing of levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from psa_triton.kept import kept_count, last_kept
from psa_triton.products import wide

UNITS_PER_BLOCK = 8
"""Units of a block at level 1; coarser levels than this hold less than a unit."""

UNIT_LEVELS = (1, 2, 4, 8)
"""Levels that are read in whole units."""

_TOKENS_AT_ONCE = 4096  # pooled in float32 this many at a time, to bound the scratch memory


@dataclass(frozen=True)
class PyramidLayout:
    """Where each (level, block) lies in the flat pyramid; depends on the number of tokens and the block size alone."""

    tokens: int
    """Nk: tokens of the sequence."""
    block_n: int
    """Tokens of a block; the last block may hold fewer."""
    levels: tuple[int, ...]
    """Levels present, finest first, starting with 1."""

    @property
    def blocks(self) -> int:
        """Number of blocks, the last one perhaps short."""
        return -(-self.tokens // self.block_n)

    @property
    def rows(self) -> int:
        """P: rows of the pyramid, padding included."""
        return sum(self.blocks * self.block_n // level for level in self.levels)

    def first_row(self, level: int) -> int:
        """First row of `level`."""
        return sum(self.blocks * self.block_n // finer for finer in self.levels if finer < level)


@dataclass(frozen=True)
class RowTables:
    """What a kernel must know of each row besides its key and value.

    Rows without a token are padding, or hold tokens that a key mask leaves out and no other.
    """

    count: torch.Tensor
    """int64 [P]: number of tokens averaged in the row."""
    last_token: torch.Tensor
    """int64 [P]: position of the last of these tokens; larger than any position on rows without one."""

    def log_count(self, dtype: torch.dtype) -> torch.Tensor:
        """`[P]` of `dtype`: ln of the counts; -inf on rows without a token."""
        return self.count.to(dtype).log()


@lru_cache(maxsize=32)
def row_tables(layout: PyramidLayout, device: torch.device) -> RowTables:
    """Count and last token of every row of the pyramid (cached; do not write to the tensors)."""
    return kept_row_tables(layout, torch.ones(layout.tokens, dtype=torch.bool, device=device))


def kept_row_tables(layout: PyramidLayout, keep: torch.Tensor) -> RowTables:
    """The tables of a pyramid of which `keep`, bool `[Nk]`, says which tokens are there."""
    keep = torch.nn.functional.pad(keep, (0, layout.blocks * layout.block_n - layout.tokens))
    count = torch.cat([kept_count(keep, level) for level in layout.levels])
    last_token = torch.cat([last_kept(keep, level) for level in layout.levels])
    return RowTables(count, last_token)


def pyramid_layout(tokens: int, block_n: int, coarsest: int) -> PyramidLayout:
    """The layout for `tokens` keys that holds the unit levels and every coarser one up to `coarsest`."""
    levels = [level for level in UNIT_LEVELS if level <= block_n]
    while levels[-1] < coarsest:
        levels.append(levels[-1] * 2)
    return PyramidLayout(tokens, block_n, tuple(levels))


def write_pyramid(
    x: torch.Tensor,
    layout: PyramidLayout,
    out: torch.Tensor,
    count: torch.Tensor | None = None,
    *,
    less: torch.Tensor | None = None,
) -> None:
    """Write every level of `x` to the rows of `out`; each row is the mean of its group's true tokens.

    Args:
        x: keys or values `[..., Nk, D]`, any strides.
        layout: of `Nk` tokens.
        out: `[..., P, D]`, any strides, of any floating dtype; means are formed in float32 (float64 for float64).
        count: int64 `[P]`, `RowTables.count` where a key mask leaves tokens out: these are not read, and rows without
            a token become zeros. None if all tokens are there.
        less: `[..., 1, D]`, taken away from every token that is there; None takes nothing.
    """
    in_place = out.dtype == x.dtype == wide(x[:0]).dtype and count is less is None
    for start, rows in token_chunks(x, layout, count, less, x[..., 0].numel() if in_place else _TOKENS_AT_ONCE):
        out[..., start : start + rows.shape[-2], :] = rows
        for level in layout.levels[1:]:
            even, odd = rows[..., 0::2, :], rows[..., 1::2, :]
            row = layout.first_row(level) + start // level
            end = row + even.shape[-2]
            target = out[..., row:end, :]
            if count is not None:
                rows = even + odd
                target.copy_(rows / count[row:end, None].clamp(min=1))
            elif in_place:
                rows = torch.add(even, odd, out=target).mul_(0.5)
            else:
                rows = (even + odd).mul_(0.5)
                target.copy_(rows)
    if count is None:
        # Groups cut by the end of the sequence were divided by too much.
        for row, tokens in short_groups(x, layout):
            mean = tokens.mean(-2)
            out[..., row, :] = mean if less is None else mean - less[..., 0, :]


def token_chunks(
    x: torch.Tensor,
    layout: PyramidLayout,
    count: torch.Tensor | None = None,
    less: torch.Tensor | None = None,
    at_once: int = _TOKENS_AT_ONCE,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Whole blocks `[..., C, D]` in the dtype of sums, and the first token of them; zeros for what is not there.

    Args:
        x, layout, count, less: see `write_pyramid`.
        at_once: tokens of a chunk, all heads together.
    """
    n, heads = layout.block_n, x[..., 0, 0].numel()
    whole = layout.tokens // n * n
    chunk = max(1, at_once // (n * heads)) * n
    for start in (*range(0, whole, chunk), *([whole] if whole < layout.tokens else [])):
        end = min(start + chunk, whole) if start < whole else whole + n
        piece = wide(x[..., start:end, :])
        piece = piece if less is None else piece - less
        missing = end - start - piece.shape[-2]
        piece = torch.nn.functional.pad(piece, (0, 0, 0, missing)) if missing else piece
        yield start, piece if count is None else piece.masked_fill(count[start:end, None] == 0, 0.0)


def short_groups(x: torch.Tensor, layout: PyramidLayout) -> Iterator[tuple[int, torch.Tensor]]:
    """Row and tokens `[..., C, D]`, in the dtype of sums, of groups that the sequence's end cuts, finest first."""
    for level in layout.levels[1:]:
        group, count = divmod(layout.tokens, level)
        if count:
            yield layout.first_row(level) + group, wide(x[..., group * level :, :])
