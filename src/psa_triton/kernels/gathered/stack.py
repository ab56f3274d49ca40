"""What the query blocks of a stack are, and the rows that they read, gathered from the pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from psa_triton.kernels.gathered.pyramid import Pyramid
from psa_triton.kernels.gathered.scratch import Scratch


@dataclass(frozen=True)
class Stack:
    """G lists of L rows each. What fills up a list stands at its beginning, and has a log count of -inf.

    Of one list alone nothing here has the dimension G, nor has anything computed with it: views are calls, too, and
    threads wait for each other at every call.
    """

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
        source, chosen = in_steps(table, self.pyramid), self.steps.view(-1)
        shape = (len(chosen), source.shape[1])
        picked = scratch.take(name if table.dtype == dtype else "narrow", shape, table.dtype, table.device)
        torch.index_select(source, 0, chosen, out=picked)
        if table.dtype != dtype:
            picked = scratch.take(name, shape, dtype, table.device).copy_(picked)
        return picked.view(*self.steps.shape[:-1], -1, table.shape[2])


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

    def numbers(self) -> list[int]:
        """Of each, counted through all blocks of all heads."""
        return [
            head * self.per_head + block
            for head in range(self.heads)
            for block in range(self.first, self.first + self.count)
        ]

    def take(self, x: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """Of `x [heads, Nq, ...]` the blocks of those numbers, `[G, length, ...]`; of one block, a view."""
        if len(numbers) == 1:
            head, first = self._place(numbers[0])
            return x[head, first : first + self.length]
        return self._cut(x)[self._places(numbers, x.device)]

    def put(self, x: torch.Tensor, numbers: Sequence[int], values: torch.Tensor) -> None:
        """Write blocks, `[G, length, ...]`, to `x [heads, Nq, ...]`."""
        if len(numbers) == 1:
            self.take(x, numbers).copy_(values)
        else:
            self._cut(x)[self._places(numbers, x.device)] = values.to(x.dtype)

    def positions(self, numbers: Sequence[int], device: torch.device) -> torch.Tensor:
        """Tokens of the blocks of those numbers, int64 `[G, length]`."""
        within = torch.arange(self.length, device=device)
        if len(numbers) == 1:
            return within + self._place(numbers[0])[1]
        return torch.tensor([self._place(number)[1] for number in numbers], device=device)[:, None] + within

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.start : self.start + self.count * self.length].unflatten(1, (self.count, self.length))

    def _place(self, number: int) -> tuple[int, int]:
        """The head of a block, and the first of its tokens."""
        head, block = divmod(number, self.per_head)
        return head, self.start + (block - self.first) * self.length

    def _places(self, numbers: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.tensor(numbers, device=device)
        return chosen // self.per_head, chosen % self.per_head - self.first


StackedBlocks = tuple[QueryBlocks, list[int]]
"""Query blocks of one length, and the numbers of those of a stack."""


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
    chosen = steps.view(-1)

    def pick(table: torch.Tensor) -> torch.Tensor:
        return in_steps(table, pyramid).index_select(0, chosen).view(*steps.shape[:-1], -1)

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
    return table.view(pyramid.steps, -1)


def _frontier(last_token: torch.Tensor, log_count: torch.Tensor, limit: torch.Tensor) -> Frontier | None:
    hidden_rows = (last_token > limit[..., :1]).view(-1, last_token.shape[-1]).any(0)
    if not hidden_rows.any():
        return None
    cut = int(hidden_rows.int().argmax())
    first = last_token.masked_fill(log_count == -torch.inf, torch.iinfo(last_token.dtype).max).amin(-1)
    empty = limit < first[..., None]
    return Frontier(cut, last_token[..., None, cut:] > limit[..., None], empty if empty.any() else None)
