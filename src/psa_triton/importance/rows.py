"""How an estimator is described: which rows stand for the blocks, and how a pair of blocks becomes one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from psa_triton.blocks import block_count, visible_blocks
from psa_triton.kept import first_kept, kept_count, last_kept

Reduce = Literal["max", "sum", "norm"]


@dataclass(frozen=True, eq=False)
class BlockGrid:
    """Sizes of one estimate, tokens, and which block pairs there are."""

    block_m: int
    block_n: int
    query_tokens: int
    key_tokens: int
    is_causal: bool
    key_mask: Tensor | None = None
    """bool `[B, Nk]`, which keys are there; None if all are."""

    @property
    def query_blocks(self) -> int:
        return block_count(self.query_tokens, self.block_m)

    @property
    def key_blocks(self) -> int:
        return block_count(self.key_tokens, self.block_n)

    @property
    def shift(self) -> int:
        """Query `i` sees keys up to `i + shift` under the causal mask."""
        return self.key_tokens - self.query_tokens

    def visible(self, device: torch.device) -> Tensor:
        """Which block pairs masks leave visible, bool `[nq, nk]`, or `[B, 1, nq, nk]` with a key mask."""
        visible, _ = visible_blocks(
            self.query_tokens,
            self.key_tokens,
            self.block_m,
            self.block_n,
            device,
            is_causal=self.is_causal,
            key_mask=self.key_mask,
        )
        return visible


@dataclass(frozen=True)
class QueryRows:
    """Rows that stand for the query blocks, each one or more query tokens side by side.

    Attributes:
        tokens: int64 `[R, w]`, the query tokens that row `r` joins along the head dimension.
        per_block: rows a query block has; the last block may have fewer.
    """

    tokens: Tensor
    per_block: int

    @property
    def newest(self) -> Tensor:
        """The last token of each row, int64 `[R]`: under a causal mask a row sees what this one sees."""
        return self.tokens.amax(-1)


@dataclass(frozen=True)
class KeyRows:
    """Rows that stand for the key blocks, each one or more key tokens, or means of keys, side by side.

    Attributes:
        tokens: int64 `[R, w]`, or `[B, R, w]`, the keys that row `r` joins along the head dimension.
        needs: int64 `[R]`, ascending: a query sees row `r` under a causal mask iff it sees key token `needs[r]`. With
            a key mask `[B, R]`: `key_tokens`, which no query sees, for a row without a kept token.
        per_block: rows a key block has; the last block may have fewer.
        group: neighbouring keys that are averaged first, a power of two; `tokens` then counts such means.
        last_log_count: `ln` of the last row's tokens over a full row's, 0 if it is full: a short row weighs less.
        log_count: the same of all rows, float32 `[B, R]`, in its place where there is a key mask.
    """

    tokens: Tensor
    needs: Tensor
    per_block: int
    group: int = 1
    last_log_count: float = 0.0
    log_count: Tensor | None = None


def kept_needs(grid: BlockGrid, group: int, *, pick: Literal["first", "last"]) -> Tensor:
    """`KeyRows.needs` under a key mask, of rows that need the first or last kept token of their `group` keys."""
    assert grid.key_mask is not None
    needs = (first_kept if pick == "first" else last_kept)(grid.key_mask, group)
    return needs.clamp_(max=grid.key_tokens)


def log_shares(grid: BlockGrid, group: int) -> Tensor:
    """`KeyRows.log_count` of rows that stand for `group` keys."""
    assert grid.key_mask is not None
    return (kept_count(grid.key_mask, group).double() / group).log().to(torch.float32)


@dataclass(frozen=True)
class Estimate:
    """What an estimator computes; `score_blocks` does it.

    The logit of a query row and a key row is the mean over the `w` products of the tokens that they join, times the
    scale of attention. Softmax runs over the key rows.

    Attributes:
        query_rows: stand for the query blocks.
        key_rows: stand for the key blocks; as many tokens wide.
        reduce: how the probabilities of a block pair become one number: their maximum, their sum, or the
            root of the sum of their squares.
    """

    query_rows: QueryRows
    key_rows: KeyRows
    reduce: Reduce
