"""What the estimators share: softmax of a few query rows against a few key rows, reduced to block pairs.

An estimator only says which rows stand for a query block and which for a key block (`QueryRows`, `KeyRows`) and how the
probabilities of a block pair become one number. The scores exist for a few query blocks at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import block_count, causal_blocks

SCRATCH_SHARE = 8
"""Scores held at a time: at most 1/8 as many numbers as K has, or else those of one query block."""


@dataclass(frozen=True)
class BlockGrid:
    """Sizes of one estimate, tokens."""

    block_m: int
    block_n: int
    query_tokens: int
    key_tokens: int
    is_causal: bool

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


@dataclass(frozen=True)
class QueryRows:
    """Rows that stand for the query blocks, each one or more query tokens side by side.

    Attributes:
        tokens: int64 `[R, w]`, the query tokens that row `r` joins along the head dimension.
        per_block: rows a query block has; the last block may have fewer.
    """

    tokens: Tensor
    per_block: int


@dataclass(frozen=True)
class KeyRows:
    """Rows that stand for the key blocks.

    Attributes:
        rows: `[B, Hkv, R, E]`.
        needs: int64 `[R]`, ascending: a query sees row `r` under a causal mask iff it sees key token `needs[r]`.
        per_block: rows a key block has; the last block may have fewer.
        last_log_count: `ln` of the last row's tokens over a full row's, 0 if it is full: a short row weighs less.
    """

    rows: Tensor
    needs: Tensor
    per_block: int
    last_log_count: float = 0.0


def score_blocks(
    q: Tensor, query_rows: QueryRows, key_rows: KeyRows, grid: BlockGrid, *, scale: float, reduce: Literal["max", "sum"]
) -> Tensor:
    """Importance of every block pair: softmax over the key rows, reduced over the rows of each pair.

    A row of the result that no estimate reaches (its query rows see no key row) is uniform over its visible blocks.
    Key blocks with a non-finite row (NaN, inf) weigh as much as all finite blocks of the row together, so attention
    reads them and shows what dense attention shows; non-finite query rows count as zeros.

    Returns:
        float32 `[B, Hq, nq, nk]`, see `block_importance`.
    """
    rows, spoiled = _finite_rows(_pad_rows(_fast(key_rows.rows), grid.key_blocks * key_rows.per_block))
    key_rows = KeyRows(rows, key_rows.needs, key_rows.per_block, key_rows.last_log_count)
    spoiled_blocks = spoiled.unflatten(-1, (grid.key_blocks, key_rows.per_block)).any(-1)

    per_query_block = q.shape[0] * q.shape[1] * query_rows.per_block * rows.shape[-2]
    step = max(1, q.shape[0] * rows.shape[1] * grid.key_tokens * q.shape[-1] // SCRATCH_SHARE // per_query_block)
    mass = torch.zeros(*q.shape[:2], grid.query_blocks, grid.key_blocks, dtype=torch.float32, device=q.device)
    for first in range(0, grid.query_blocks, step):
        last = min(first + step, grid.query_blocks)
        seen = _blocks_in_sight(last, grid)
        if seen:
            probabilities = _probabilities(q, query_rows, key_rows, grid, (first, last), seen, scale)
            mass[:, :, first:last, :seen] = _reduce_pairs(probabilities, last - first, seen, reduce)
    return _normalise(mass, spoiled_blocks, grid)


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    missing = count - rows.shape[-2]
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _finite_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`rows` with every non-finite one zeroed in place, and which ones those were, bool `[..., R]`."""
    # The extremes of a row show its NaN and inf without a tensor of its size, which isfinite(rows) would make.
    spoiled = ~(rows.amax(-1).isfinite() & rows.amin(-1).isfinite())
    return rows.masked_fill_(spoiled[..., None], 0), spoiled


def _fast(rows: Tensor) -> Tensor:
    """`rows` in a type whose products are fast: CPUs have none for float16, and torch's own is slower than float32."""
    return rows.float() if rows.dtype == torch.float16 and rows.device.type == "cpu" else rows


def _blocks_in_sight(last: int, grid: BlockGrid) -> int:
    """Key blocks that query blocks before `last` can see at least in part: all that need scoring."""
    if not grid.is_causal:
        return grid.key_blocks
    newest = min(last * grid.block_m, grid.query_tokens) - 1 + grid.shift
    return max(0, min(grid.key_blocks, newest // grid.block_n + 1))


def _probabilities(
    q: Tensor,
    query_rows: QueryRows,
    key_rows: KeyRows,
    grid: BlockGrid,
    blocks: tuple[int, int],
    seen: int,
    scale: float,
) -> Tensor:
    """Softmax of query blocks `blocks` over the key rows of the first `seen` key blocks.

    Returns:
        float32 (float64 for float64 inputs) `[B, Hkv, G, query rows, key rows]`; rows that stand for nothing
        (padding of a ragged block, a query row that sees no key row) are zeros.
    """
    tokens = query_rows.tokens[blocks[0] * query_rows.per_block : blocks[1] * query_rows.per_block]
    columns = seen * key_rows.per_block
    padding = (blocks[1] - blocks[0]) * query_rows.per_block - len(tokens)
    queries = q.index_select(-2, tokens.flatten()).unflatten(-2, tokens.shape).flatten(-2)
    queries, _ = _finite_rows(_pad_rows(_fast(queries) * scale, len(tokens) + padding))
    keys = key_rows.rows[:, :, :columns]
    heads = (q.shape[0], keys.shape[1], q.shape[1] // keys.shape[1])
    logits = queries.reshape(*heads[:2], -1, queries.shape[-1]) @ keys.transpose(-1, -2)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(-2, (heads[2], -1))

    true_rows = len(key_rows.needs)
    logits[..., true_rows:] = -math.inf
    if key_rows.last_log_count and columns >= true_rows:
        logits[..., true_rows - 1] += key_rows.last_log_count
    if not grid.is_causal:
        probabilities = logits.softmax(-1)
    else:
        hidden = key_rows.needs[:columns] > tokens.amax(-1)[:, None] + grid.shift
        logits[..., : len(tokens), : hidden.shape[-1]].masked_fill_(hidden, -math.inf)
        probabilities = logits.softmax(-1)
        probabilities[..., : len(tokens), :].masked_fill_(hidden[:, :1], 0)
    probabilities[..., len(tokens) :, :] = 0
    return probabilities


def _reduce_pairs(probabilities: Tensor, query_blocks: int, key_blocks: int, reduce: Literal["max", "sum"]) -> Tensor:
    """`[B, Hkv, G, query rows, key rows]` -> `[B, Hq, query blocks, key blocks]`."""
    fold = torch.amax if reduce == "max" else torch.sum
    by_query_block = fold(probabilities.flatten(1, 2).unflatten(-2, (query_blocks, -1)), dim=-2)
    return fold(by_query_block.unflatten(-1, (key_blocks, -1)), dim=-1)


def _normalise(mass: Tensor, spoiled_blocks: Tensor, grid: BlockGrid) -> Tensor:
    """Rows that sum to 1 over their visible key blocks; rows that see no key are zeros.

    Args:
        mass: float32 `[B, Hq, nq, nk]`, not NaN except where finite inputs overflowed.
        spoiled_blocks: bool `[B, Hkv, nk]`, key blocks that hold non-finite keys.
        grid: sizes, and whether a causal mask hides blocks.
    """
    mass = mass.nan_to_num_(nan=1.0)
    total = mass.sum(-1, keepdim=True)
    mass = torch.where(total > 0, mass / total, 1 / grid.key_blocks)
    spoiled = spoiled_blocks.repeat_interleave(mass.shape[1] // spoiled_blocks.shape[1], dim=1)
    mass = mass.masked_fill_(spoiled[:, :, None], 1.0)
    if grid.is_causal:
        visible, _ = causal_blocks(grid.query_tokens, grid.key_tokens, grid.block_m, grid.block_n, mass.device)
        mass = mass.masked_fill_(~visible, 0.0)
    return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
