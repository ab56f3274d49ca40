"""What the estimators share, in torch: softmax of a few query rows against a few key rows, reduced to block pairs.

The scores exist for a few query blocks at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import Blocks
from psa_triton.importance.estimators import Estimate, KeyRows, QueryRows, Reduce
from psa_triton.kept import kept_count
from psa_triton.products import operand, product, wide

SCRATCH_SHARE = 8
"""Scores held at a time: at most 1/8 as many numbers as K has, or else those of one query block."""
_LEAST_SCRATCH = 1 << 18
"""Scores that may be held in any case, so that short sequences take few calls."""
_KEYS_AT_A_TIME = 2048
"""Keys of each head that exist in float32 at a time while they are averaged."""


def score_blocks(q: Tensor, k: Tensor, estimate: Estimate, blocks: Blocks, scale: float) -> Tensor:
    """Importance of every block pair: softmax over the key rows, reduced over the rows of each pair.

    A row of the result that no estimate reaches (its query rows see no key row) is uniform over its visible blocks.
    Key blocks with a non-finite row (NaN, inf) weigh as much as all finite blocks of the row together, so attention
    reads them and shows what dense attention shows; non-finite query rows count as zeros.

    Args:
        q: `[B, Hq, Nq, D]`.
        k: `[B, Hkv, Nk, D]`.
        estimate: the rows that stand for the blocks.
        blocks: which they are.
        scale: of attention's logits.

    Returns:
        float32 `[B, Hq, nq, nk]`, see `block_importance`.
    """
    query_rows, key_rows = estimate.query_rows, estimate.key_rows
    source = k if key_rows.group == 1 else _group_means(k, key_rows.group, blocks.key_mask)
    keys = operand(_join(source, key_rows.tokens))
    keys, spoiled = _finite_rows(_pad_rows(keys, blocks.columns * key_rows.per_block))
    if key_rows.log_count is not None:  # rows without a kept token stand for nothing, whatever they hold
        spoiled[..., : key_rows.log_count.shape[-1]] &= key_rows.log_count.isfinite()[:, None]
    spoiled_blocks = spoiled.unflatten(-1, (blocks.columns, key_rows.per_block)).any(-1)

    per_query_block = q.shape[0] * q.shape[1] * query_rows.per_block * keys.shape[-2]
    step = max(1, max(_LEAST_SCRATCH, k.numel() // SCRATCH_SHARE) // per_query_block)
    mass = torch.zeros(*q.shape[:2], blocks.rows, blocks.columns, dtype=torch.float32, device=q.device)
    for first in range(0, blocks.rows, step):
        last = min(first + step, blocks.rows)
        seen = _blocks_in_sight(last, blocks)
        if seen:
            queries = QueryRows(
                query_rows.tokens[first * query_rows.per_block : last * query_rows.per_block], query_rows.per_block
            )
            seen_keys = keys[:, :, : seen * key_rows.per_block]
            probabilities = _probabilities(q, queries, last - first, seen_keys, key_rows, blocks, scale)
            mass[:, :, first:last, :seen] = _reduce_pairs(probabilities, last - first, seen, estimate.reduce)
    return _normalise(mass, spoiled_blocks, blocks)


def _join(x: Tensor, tokens: Tensor) -> Tensor:
    """Rows of `w` tokens side by side, `[B, H, R, w * D]`: a copy. `tokens` are `[R, w]` or `[B, R, w]`."""
    if tokens.dim() == 3:
        return torch.cat([_join(item[None], of_item) for item, of_item in zip(x, tokens, strict=True)])
    return x.index_select(-2, tokens.flatten()).unflatten(-2, tokens.shape).flatten(-2)


def _group_means(k: Tensor, group: int, key_mask: Tensor | None) -> Tensor:
    """Means of `group` consecutive keys `[B, Hkv, ceil(Nk / group), D]`, the last one of as many as there are.

    Keys that a mask, bool `[B, Nk]`, leaves out do not count.
    """
    whole = k.shape[-2] // group * group
    # torch widens its whole argument to float32 before it adds.
    starts = [*range(0, whole, _KEYS_AT_A_TIME), *([whole] if whole < k.shape[-2] else [])]
    means = []
    for start in starts:
        end = min(start + _KEYS_AT_A_TIME, whole) if start < whole else k.shape[-2]
        size = min(group, end - start)
        part = k[:, :, start:end]
        if key_mask is None:
            means.append(part.unflatten(-2, (-1, size)).mean(-2))
            continue
        keep = key_mask[:, start:end]
        mean = part.masked_fill(~keep[:, None, :, None], 0).unflatten(-2, (-1, size)).mean(-2)
        share = kept_count(keep, size).clamp(min=1).double() / size
        means.append((wide(mean) / share.to(wide(mean).dtype)[:, None, :, None]).to(k.dtype))
    return torch.cat(means, dim=-2)


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    missing = count - rows.shape[-2]
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _finite_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`rows` with every non-finite one zeroed in place, and which ones those were, bool `[..., R]`."""
    # The extremes of a row show its NaN and inf without a tensor of its size, which isfinite(rows) would make; 0 times
    # either is NaN.
    least, most = rows.aminmax(dim=-1)
    spoiled = (least * 0 + most * 0) != 0
    return rows.masked_fill_(spoiled[..., None], 0), spoiled


def _blocks_in_sight(last: int, blocks: Blocks) -> int:
    """Key blocks that query blocks before `last` can see at least in part: all that need scoring."""
    if not blocks.is_causal:
        return blocks.columns
    newest = min(last * blocks.m, blocks.queries) - 1 + blocks.shift
    return max(0, min(blocks.columns, newest // blocks.n + 1))


def _probabilities(
    q: Tensor, query_rows: QueryRows, query_blocks: int, keys: Tensor, key_rows: KeyRows, blocks: Blocks, scale: float
) -> Tensor:
    """Softmax of the rows of `query_blocks` consecutive query blocks over `keys`, the first of the key rows.

    Returns:
        float32 (float64 for float64 inputs) `[B, Hkv, G, query rows, key rows]`; rows that stand for nothing
        (padding of a ragged block, a query row that sees no key row) are zeros.
    """
    count, width = query_rows.tokens.shape
    queries = operand(_join(q, query_rows.tokens)) * (scale / width)
    queries, _ = _finite_rows(_pad_rows(queries, query_blocks * query_rows.per_block))
    heads = (q.shape[0], keys.shape[1], q.shape[1] // keys.shape[1])
    logits = product(queries.reshape(heads[0] * heads[1], -1, queries.shape[-1]), keys.flatten(0, 1).mT)
    logits = wide(logits).unflatten(0, heads[:2]).unflatten(-2, (heads[2], -1))

    columns, true_rows = keys.shape[-2], key_rows.needs.shape[-1]
    logits[..., true_rows:] = -math.inf
    if key_rows.last_log_count and columns >= true_rows:
        logits[..., true_rows - 1] += key_rows.last_log_count
    if key_rows.log_count is not None:
        logits[..., :true_rows] += key_rows.log_count[:, None, None, None, :columns]
    if not blocks.is_causal and blocks.key_mask is None:
        probabilities = logits.softmax(-1)
    else:
        limit = (
            query_rows.newest + blocks.shift if blocks.is_causal else query_rows.newest.new_full((), blocks.keys - 1)
        )
        hidden = key_rows.needs[..., None, :columns] > limit[..., None]
        hidden = hidden if hidden.dim() == 2 else hidden[:, None, None]
        logits[..., :count, : hidden.shape[-1]].masked_fill_(hidden, -math.inf)
        probabilities = logits.softmax(-1)
        probabilities[..., :count, :].masked_fill_(hidden.all(-1, keepdim=True), 0)
    probabilities[..., count:, :] = 0
    return probabilities


def _reduce_pairs(probabilities: Tensor, query_blocks: int, key_blocks: int, reduce: Reduce) -> Tensor:
    """`[B, Hkv, G, query rows, key rows]` -> `[B, Hq, query blocks, key blocks]`."""
    if reduce == "norm":
        probabilities = probabilities.square_()
    fold = torch.amax if reduce == "max" else torch.sum
    by_query_block = fold(probabilities.flatten(1, 2).unflatten(-2, (query_blocks, -1)), dim=-2)
    reduced = fold(by_query_block.unflatten(-1, (key_blocks, -1)), dim=-1)
    return reduced.sqrt_() if reduce == "norm" else reduced


def _normalise(mass: Tensor, spoiled_blocks: Tensor, blocks: Blocks) -> Tensor:
    """Rows that sum to 1 over their visible key blocks; rows that see no key are zeros.

    Args:
        mass: float32 `[B, Hq, nq, nk]`, changed in place. NaN where finite inputs overflowed: as if the key block were
            spoiled.
        spoiled_blocks: bool `[B, Hkv, nk]`, key blocks that hold non-finite keys.
        blocks: which they are.
    """
    spoiled = spoiled_blocks.repeat_interleave(mass.shape[1] // spoiled_blocks.shape[1], dim=1)[:, :, None]
    spoiled = spoiled | mass.isnan()
    mass = mass.masked_fill_(spoiled, 0.0)
    total = mass.sum(-1, keepdim=True)
    mass = torch.where(total > 0, mass / total, 1 / blocks.columns).masked_fill_(spoiled, 1.0)
    if blocks.is_causal or blocks.key_mask is not None:
        mass = mass.masked_fill_(~blocks.visible(mass.device), 0.0)
    return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
