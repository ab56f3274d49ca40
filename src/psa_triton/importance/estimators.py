"""The estimators: which rows stand for the blocks, and how a pair of blocks becomes one number.

All are one computation (`scoring.py`): softmax of a few query rows over a few key rows, reduced to block pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from psa_triton.blocks import Blocks, block_lengths
from psa_triton.kept import first_kept, kept_count, last_kept, nearest_kept, nth_kept

Reduce = Literal["max", "sum", "norm"]
Pick = Literal["first", "last"]


@dataclass(frozen=True)
class QueryRows:
    """Rows that stand for the query blocks, each one or more query tokens side by side."""

    tokens: Tensor
    """int64 `[R, w]`, the query tokens that row `r` joins along the head dimension."""
    per_block: int
    """Rows a query block has; the last block may have fewer."""

    @property
    def newest(self) -> Tensor:
        """The last token of each row, int64 `[R]`: under a causal mask a row sees what this one sees."""
        return self.tokens.amax(-1)


@dataclass(frozen=True)
class KeyRows:
    """Rows that stand for the key blocks, each one or more key tokens, or means of keys, side by side."""

    tokens: Tensor
    """int64 `[R, w]`, or `[B, R, w]`, the keys that row `r` joins along the head dimension."""
    per_block: int
    """Rows a key block has; the last block may have fewer."""
    needs: Tensor
    """int64 `[R]`, ascending: a query sees row `r` under a causal mask iff it sees key token `needs[r]`.

    With a key mask `[B, R]`: `Nk`, which no query sees, for a row without a kept token.
    """
    last_log_count: float = 0.0
    """`ln` of the last row's tokens over a full row's, 0 if it is full: a short row weighs less."""
    log_count: Tensor | None = None
    """The same of all rows, float32 `[B, R]`, in its place where there is a key mask."""
    group: int = 1
    """Neighbouring keys that are averaged first, a power of two; `tokens` then counts such means."""


@dataclass(frozen=True)
class Estimate:
    """What `score_blocks` computes.

    The logit of a query row and a key row is the mean over the `w` products of the tokens that they join, times the
    scale of attention. Softmax runs over the key rows.
    """

    query_rows: QueryRows
    key_rows: KeyRows
    reduce: Reduce
    """How a pair's probabilities become one number: their maximum, sum, or the root of the sum of their squares."""


@dataclass(frozen=True)
class Estimator:
    """One way to estimate importance."""

    rows: Callable[[Blocks, torch.device, torch.Generator | None], tuple[QueryRows, KeyRows]]
    """What stands for the blocks: token tables on a device, drawn by a generator, if there is one."""
    reduce: Reduce
    cost: Callable[[int], float]
    """Multiply-adds for blocks of so many queries, as a share of dense attention's (QK^T plus PV)."""


_QUERY_STRATUM: Final = 4
"""One query of this many is looked at by `sampled`."""
_GROUP: Final = 8
"""Neighbouring tokens that make one row: the side of `antidiagonal`'s squares, the keys in a mean of `pooled`."""
_QUERIES: Final = 8
"""Queries that stand for a query block in `pooled`."""


def _sampled(key_stratum: int, reduce: Reduce) -> Estimator:
    """Single tokens: one of every four queries, and of every `key_stratum` keys, as many as are kept."""

    def rows(blocks: Blocks, device: torch.device, generator: torch.Generator | None) -> tuple[QueryRows, KeyRows]:
        queries = _stratified(blocks.queries, _QUERY_STRATUM, "last", device, generator)
        keys = _stratified(blocks.keys, key_stratum, "first", device, generator, blocks.key_mask)
        query_rows = QueryRows(queries[:, None], blocks.m // _QUERY_STRATUM)
        per_block = blocks.n // key_stratum
        if blocks.key_mask is None:
            return query_rows, KeyRows(keys[:, None], per_block, needs=keys)
        is_there = kept_count(blocks.key_mask, key_stratum) > 0
        needs = keys.masked_fill(~is_there, blocks.keys)
        return query_rows, KeyRows(keys[..., None], per_block, needs, log_count=is_there.float().log())

    return Estimator(rows, reduce, lambda block_m: 1 / _QUERY_STRATUM / key_stratum / 2)


def _pooled_rows(blocks: Blocks, device: torch.device, generator: torch.Generator | None) -> tuple[QueryRows, KeyRows]:
    """A few true queries of each block, spread evenly over it, and means of 8 neighbouring keys.

    The mean of queries would miss the spikes that each has alone. A group of keys weighs as many tokens as it has.
    Under a causal mask a query sees a group iff it sees its last kept token, as at pyramid level 8; visible tokens of a
    group that is not seen lie in a key block that the frontier cuts.
    """
    queries = _stratified(blocks.queries, blocks.m // _QUERIES, "last", device, generator)
    means = torch.arange(-(-blocks.keys // _GROUP), device=device)[:, None]
    key_rows = KeyRows(means, blocks.n // _GROUP, *_groups_of_keys(blocks, "last", device), group=_GROUP)
    return QueryRows(queries[:, None], _QUERIES), key_rows


def _antidiagonal_rows(
    blocks: Blocks, device: torch.device, generator: torch.Generator | None
) -> tuple[QueryRows, KeyRows]:
    """Groups of 8 tokens laid side by side, those of queries reversed: a product sums an antidiagonal.

    A ragged last group repeats its last token, so that its logit is a mean of as many products as any other, and weighs
    as many tokens as it has; so does a group with keys left out, where the kept key before one is repeated in its
    place, or the first where there is none. Under a causal mask a query group sees a key group iff its last query sees
    the first (kept) key. Nothing is random.
    """
    query_rows = QueryRows(_groups(blocks.queries, device).flip(-1), blocks.m // _GROUP)
    keys = _groups(blocks.keys, device) if blocks.key_mask is None else nearest_kept(blocks.key_mask, _GROUP)
    return query_rows, KeyRows(keys, blocks.n // _GROUP, *_groups_of_keys(blocks, "first", device))


def _pooled_cost(block_m: int) -> float:
    return _QUERIES / block_m / _GROUP / 2


ESTIMATORS: Final = {
    # The paper's for generation (arXiv 2512.04025).
    "sampled": _sampled(4, "max"),
    # For text, where attention picks out single tokens: what falls between the keys looked at is never read in full. On
    # a language model, looking at twice as many keys as `sampled` does took away half to nine tenths of what sparse
    # attention adds to the perplexity; twice as many queries took a third to a half. The sum of squares is what the
    # errors of groups that are not read in full add up to, see docs/fidelity.md.
    "finely_sampled": _sampled(2, "norm"),
    # XAttention's (arXiv 2503.16428, algorithm 1), the paper's choice for understanding: one product in eight of QK^T.
    "antidiagonal": Estimator(_antidiagonal_rows, "sum", lambda block_m: 1 / _GROUP / 2),
    # At equal density the maximum left 2 to 6% less error on tokens of a vision transformer than the sum over the pair.
    "pooled": Estimator(_pooled_rows, "max", _pooled_cost),
    # What a budget asks for: errors of groups add up by the squares of their masses.
    "representative": Estimator(_pooled_rows, "norm", _pooled_cost),
}


def _stratified(
    tokens: int,
    stratum: int,
    pick: Pick,
    device: torch.device,
    generator: torch.Generator | None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """One token of every `stratum` neighbours, ascending, the same for all heads; the last stratum may be short.

    Args:
        tokens: how many there are to choose from.
        stratum: neighbours that one token stands for.
        pick: which of them, without a `generator`. Queries take the last and keys the first: under a causal mask such
            a query sees such a key whenever any query of its stratum sees any key of the other.
        device: of the result.
        generator: chooses at random within each stratum instead. The global random state is not touched.
        key_mask: bool `[B, tokens]`: only the kept tokens of a stratum are chosen among; in one without any, no matter.

    Returns:
        int64 `[ceil(tokens / stratum)]` on `device`, or `[B, ...]` with a key mask.
    """
    starts = torch.arange(0, tokens, stratum, device=device)
    lengths = block_lengths(tokens, stratum, device) if key_mask is None else kept_count(key_mask, stratum)
    if generator is not None:
        drawn = torch.rand(len(starts), generator=generator, device=generator.device).to(device)
        rank = (drawn * lengths).long()
    else:
        rank = torch.zeros_like(lengths) if pick == "first" else lengths - 1
    return starts + rank if key_mask is None else nth_kept(key_mask, stratum, rank)


def _groups(tokens: int, device: torch.device) -> Tensor:
    """Tokens of each group of 8, int64 `[ceil(tokens / 8), 8]`, the last one repeated to fill."""
    count = -(-tokens // _GROUP)
    return torch.arange(count * _GROUP, device=device).clamp(max=tokens - 1).view(count, _GROUP)


def _groups_of_keys(blocks: Blocks, pick: Pick, device: torch.device) -> tuple[Tensor, float, Tensor | None]:
    """`needs`, `last_log_count` and `log_count` of rows that stand for 8 keys, and need the first or last of them."""
    if blocks.key_mask is None:
        last_length = (blocks.keys - 1) % _GROUP + 1
        tokens = _groups(blocks.keys, device)
        return tokens[:, 0 if pick == "first" else -1], math.log(last_length / _GROUP), None
    needs = (first_kept if pick == "first" else last_kept)(blocks.key_mask, _GROUP).clamp_(max=blocks.keys)
    return needs, 0.0, (kept_count(blocks.key_mask, _GROUP).double() / _GROUP).log().to(torch.float32)
