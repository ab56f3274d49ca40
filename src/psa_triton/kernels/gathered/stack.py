"""What the query blocks of a stack are, and the rows that they read, gathered from the pyramid."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psa_triton.kernels.gathered.pyramid import Pyramid
from psa_triton.kernels.gathered.scratch import Scratch


@dataclass(frozen=True)
class Stack:
    """G lists of L rows each. What fills up a list stands at its beginning, and has a log count of -inf."""

    steps: torch.Tensor
    """int64 `[G, S]`, the steps that are read."""
    pyramid: Pyramid
    """Which they are steps of."""
    log_count: torch.Tensor
    """`[G, L]`, in the dtype of sums."""
    spread: torch.Tensor | None
    """`[G, L]`, where logits are corrected by it."""
    frontier: Frontier | None
    """Where a causal mask hides something."""

    def rows(self, table: torch.Tensor, dtype: torch.dtype, scratch: Scratch, name: str) -> torch.Tensor:
        """Those of the pyramid's `keys` or `values`, `[G, L, D]` in `dtype`; scratch of that name."""
        source, chosen = in_steps(table, self.pyramid), self.steps.flatten()
        shape = (len(chosen), source.shape[1])
        picked = scratch.take(name if table.dtype == dtype else "narrow", shape, table.dtype, table.device)
        torch.index_select(source, 0, chosen, out=picked)
        if table.dtype != dtype:
            picked = scratch.take(name, shape, dtype, table.device).copy_(picked)
        return picked.view(len(self.steps), -1, table.shape[2])


@dataclass(frozen=True)
class Frontier:
    """Every query sees the rows before the cut; those behind it need a mask.

    Lists are in the order of blocks, so the rows of the frontier stand together: a mask of a slice costs little, where
    one of rows picked out costs as much as the softmax.
    """

    cut: int
    """The last C of L rows begin here."""
    hidden: torch.Tensor
    """bool `[G, m, C]`: which queries do not see them."""
    empty: torch.Tensor | None
    """bool `[G, m]`: which queries see nothing at all; None if there are none."""

    def seen(self, length: int) -> torch.Tensor:
        """Bool `[G, m, length]`: which queries see which rows."""
        return torch.nn.functional.pad(~self.hidden, (length - self.hidden.shape[-1], 0), value=True)


@dataclass(frozen=True)
class QueryBlocks:
    """The query blocks of some heads that are of one length: all but the last of each, or those."""

    heads: int
    per_head: int
    """Blocks of a head, of whatever length."""
    first: int
    """Index within its head of the first of them."""
    count: int
    """Of them in a head."""
    start: int
    """First token of the first of them."""
    length: int
    """Tokens of a block."""

    def numbers(self, device: torch.device) -> torch.Tensor:
        """Of each, counted through all blocks of all heads, int64."""
        head = torch.arange(self.heads, device=device)[:, None] * self.per_head
        return (head + torch.arange(self.first, self.first + self.count, device=device)).flatten()

    def take(self, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Of `x [heads, Nq, ...]` the blocks of those numbers, `[G, length, ...]`."""
        return self._cut(x)[self._place(numbers)]

    def put(self, x: torch.Tensor, numbers: torch.Tensor, values: torch.Tensor) -> None:
        """Write blocks, `[G, length, ...]`, to `x [heads, Nq, ...]`."""
        self._cut(x)[self._place(numbers)] = values.to(x.dtype)

    def positions(self, numbers: torch.Tensor) -> torch.Tensor:
        """Tokens of the blocks of those numbers, int64 `[G, length]`."""
        first = self.start + (numbers % self.per_head - self.first) * self.length
        return first[:, None] + torch.arange(self.length, device=numbers.device)

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.start : self.start + self.count * self.length].unflatten(1, (self.count, self.length))

    def _place(self, numbers: torch.Tensor) -> tuple[torch.Tensor | slice, torch.Tensor | int]:
        if len(numbers) == 1:  # a view: indexing by tensors takes several calls, which threads wait for
            head, block = divmod(int(numbers), self.per_head)
            return slice(head, head + 1), block - self.first
        return numbers // self.per_head, numbers % self.per_head - self.first


StackedBlocks = tuple[QueryBlocks, torch.Tensor, int]
"""Query blocks of one length, the numbers of those of a stack, and the steps of the longest of their lists."""


def query_blocks(heads: int, queries: int, block_m: int) -> list[QueryBlocks]:
    """The blocks of `heads` heads with `queries` tokens each: whole ones, and short ones where there are."""
    whole, rest = divmod(queries, block_m)
    found = [
        QueryBlocks(heads, whole + bool(rest), 0, whole, 0, block_m),
        QueryBlocks(heads, whole + bool(rest), whole, 1, whole * block_m, rest),
    ]
    return [blocks for blocks in found if blocks.count and blocks.length]


def make_stack(pyramid: Pyramid, steps: torch.Tensor, limit: torch.Tensor | None) -> Stack:
    """The lists `steps`, int64 `[G, S]`.

    Args:
        pyramid: to gather from.
        steps: what each block reads.
        limit: int64 `[G, m]`, ascending: the last token that each query sees; None without a causal mask.
    """
    chosen = steps.flatten()

    def pick(table: torch.Tensor) -> torch.Tensor:
        return in_steps(table, pyramid).index_select(0, chosen).view(len(steps), -1)

    log_count = pick(pyramid.log_count)
    return Stack(
        steps=steps,
        pyramid=pyramid,
        log_count=log_count,
        spread=None if pyramid.spread is None else pick(pyramid.spread),
        frontier=None if limit is None else _frontier(pick(pyramid.last_token), log_count, limit),
    )


def in_steps(table: torch.Tensor, pyramid: Pyramid) -> torch.Tensor:
    """A view of a table `[H, P + S, ...]` with a row a step."""
    return table.view(len(table) * (pyramid.nothing + 1), -1)


def _frontier(last_token: torch.Tensor, log_count: torch.Tensor, limit: torch.Tensor) -> Frontier | None:
    hidden_rows = (last_token > limit[:, :1]).any(0)
    if not hidden_rows.any():
        return None
    cut = int(hidden_rows.int().argmax())
    first = last_token.masked_fill(log_count == -torch.inf, torch.iinfo(last_token.dtype).max).amin(-1)
    empty = limit < first[:, None]
    return Frontier(cut, last_token[:, None, cut:] > limit[:, :, None], empty if empty.any() else None)
