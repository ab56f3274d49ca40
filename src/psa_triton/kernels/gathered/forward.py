"""Pyramid attention in torch's own operations: stacks of query blocks, the rows that they read, attention over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from psa_triton.blocks import Blocks
from psa_triton.kernels.gathered.pyramid import Pyramid, pyramids
from psa_triton.kernels.gathered.schedule import Schedule, lists, stacked
from psa_triton.kernels.gathered.scratch import Scratch, thread_scratch
from psa_triton.kernels.gathered.stack import Frontier, Stack, StackedBlocks, make_stack, query_blocks
from psa_triton.kernels.gathered.threads import share_tasks
from psa_triton.kernels.gathered.ways import Way, choose_way, stack_rows
from psa_triton.kernels.int8 import rounded
from psa_triton.kernels.mean_key import common_logit, shifted
from psa_triton.kernels.reading import Reading
from psa_triton.products import logits, operand, operand_dtype, product, wide


def pyramid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    levels: torch.Tensor,
    blocks: Blocks,
    reading: Reading,
    *,
    want_lse: bool,
    way: Way | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The definition of `kernels/reference.py`, fast. Same arguments and results; its gradient is in `backward.py`.

    Args:
        want_lse: whether the log-sum-exp is wanted; else it is None.
        way: how it is computed; by default what suits the processor.

    Returns:
        The output with shape, dtype and strides of `q`, and the log-sum-exp float32 `[B, Hq, Nq]` (float64 for float64
        input).
    """
    out = torch.empty_like(q)
    if reading.qk_dtype == "int8":
        q = rounded(q)
    lse = wide(q[:0]).new_empty(q.shape[:3]) if want_lse else None
    with torch.no_grad(), thread_scratch() as scratch:
        for b, _, heads, pyramid in pyramids(k, v, levels, blocks, reading, scratch):
            _attend_heads(
                _Heads(
                    q=q[b, heads],
                    pyramid=pyramid,
                    schedule=pyramid.schedule(levels[b, heads]),
                    shift=blocks.shift if blocks.is_causal else None,
                    scale=reading.scale,
                    out=out[b, heads],
                    lse=None if lse is None else lse[b, heads],
                ),
                blocks.m,
                way,
            )
            if lse is not None and pyramid.mean_key is not None:
                common = common_logit(q[b, heads], pyramid.mean_key, reading.scale)
                lse[b, heads] = shifted(lse[b, heads], common)
    return out, lse


@dataclass(frozen=True)
class _Heads:
    """Inputs and outputs of the query heads that read the key heads of a pyramid."""

    q: torch.Tensor
    pyramid: Pyramid
    schedule: Schedule
    shift: int | None
    """Query `i` sees tokens up to `i + shift`; None without a causal mask."""
    scale: float
    out: torch.Tensor
    lse: torch.Tensor | None


def _attend_heads(heads: _Heads, block_m: int, way: Way | None) -> None:
    if (heads.schedule.start.diff() == 0).any():  # such blocks are in no stack
        heads.out.zero_()
        if heads.lse is not None:
            heads.lse.fill_(-torch.inf)
    if way is None:
        way = choose_way(heads.q.dtype, heads.q.device, mean_work(heads.q, heads.schedule))
    at_once = stack_rows(way, heads.pyramid.keys, block_m)
    share_tasks(
        partial(_attend_stacks, heads, way.fused and heads.lse is None),
        (
            (blocks, numbers)
            for blocks in query_blocks(len(heads.q), heads.q.shape[1], block_m)
            for numbers in stacked(heads.schedule, blocks.numbers(), at_once)
        ),
        threads=way.threads and heads.q.device.type == "cpu",
    )


def mean_work(q: torch.Tensor, schedule: Schedule) -> float:
    """Multiply-adds of a block of queries `[Hq, Nq, D]` times the rows of its list, on average over the blocks."""
    blocks = len(schedule.start) - 1
    return q.numel() / blocks * len(schedule.steps) * schedule.size / blocks


def _attend_stacks(heads: _Heads, fused: bool, stacks: Iterable[StackedBlocks]) -> None:
    with thread_scratch() as scratch:
        for blocks, numbers in stacks:
            limit = None if heads.shift is None else blocks.positions(numbers, heads.q.device) + heads.shift
            stack = make_stack(heads.pyramid, lists(heads.schedule, numbers, heads.pyramid.nothing), limit)
            q = blocks.take(heads.q, numbers)
            if fused:
                blocks.put(heads.out, numbers, _fused(q, stack, heads.scale, scratch))
                continue
            out, lse = _by_products(q, stack, heads.scale, scratch, want_lse=heads.lse is not None)
            blocks.put(heads.out, numbers, out)
            if heads.lse is not None and lse is not None:
                blocks.put(heads.lse, numbers, lse)


def _fused(q: torch.Tensor, stack: Stack, scale: float, scratch: Scratch) -> torch.Tensor:
    """Attention of `q [G, m, D]` over a stack, by torch's own: `[G, m, D]`."""
    bias = stack.log_count[..., None, :]
    if stack.spread is not None:
        bias = torch.addcmul(bias, half_norm(q, scale)[..., None], stack.spread[..., None, :], value=scale)
    if stack.frontier is not None:
        bias = bias.expand(*q.shape[:-1], -1).clone() if stack.spread is None else bias
        bias[..., stack.frontier.cut :].masked_fill_(stack.frontier.hidden, -torch.inf)
    # Torch's attention takes twice as long in float16 as in float32 on a CPU.
    dtype = torch.float32 if q.device.type == "cpu" and q.dtype == torch.float16 else q.dtype
    keys = stack.rows(stack.pyramid.keys, dtype, scratch, "keys")
    values = stack.rows(stack.pyramid.values, dtype, scratch, "values")
    as_heads = (x.view(-1, 1, *x.shape[-2:]).to(dtype) for x in (keys, values, bias))
    queries, keys, values, bias = q.reshape(-1, 1, *q.shape[-2:]).to(dtype), *as_heads
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale).view(q.shape)
    if stack.frontier is None:
        return out
    if stack.frontier.empty is not None:
        out = out.masked_fill(stack.frontier.empty[..., None], 0.0)
    finite = out.isfinite().all(-1, keepdim=True)
    if finite.all():
        return out
    # What is not finite may have come through a weight that the mask made 0, since 0 * nan is nan.
    return torch.where(finite, out, _by_products(q, stack, scale, scratch, want_lse=False)[0].to(out.dtype))


def _by_products(
    q: torch.Tensor, stack: Stack, scale: float, scratch: Scratch, *, want_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of `q [G, m, D]` over a stack: `[G, m, D]` and, if wanted, the log-sum-exp `[G, m]`."""
    frontier, dtype = stack.frontier, operand_dtype(q)
    keys = stack.rows(stack.pyramid.keys, dtype, scratch, "rows")
    q_logits = scratch.take("logits", (*q.shape[:-1], keys.shape[-2]), dtype, q.device)
    q_logits = logits(operand(q), keys, stack.log_count, scale, out=q_logits)
    if stack.spread is not None:
        of_queries = half_norm(q, scale).to(dtype)[..., None]
        q_logits.addcmul_(of_queries, stack.spread[..., None, :].to(dtype), value=scale)
    if frontier is not None:
        q_logits[..., frontier.cut :].masked_fill_(frontier.hidden, -torch.inf)
    lse = None
    if not want_lse:
        # In place: each row is read before it is written.
        weights = torch.softmax(q_logits, -1, out=q_logits if q.device.type == "cpu" else None)
    else:
        wide_logits = wide(q_logits)
        weights = wide_logits.softmax(-1)
        # The largest weight is exp(largest logit - lse): two maxima cost less than a second exponential.
        lse = wide_logits.amax(-1) - weights.amax(-1).log()
        weights = weights.to(dtype)
    if frontier is not None and frontier.empty is not None:
        weights = weights.masked_fill(frontier.empty[..., None], 0.0)
        lse = None if lse is None else lse.masked_fill(frontier.empty, -torch.inf)
    # The keys are done with, and their memory is free for the values.
    return product_of_seen(weights, stack.rows(stack.pyramid.values, dtype, scratch, "rows"), frontier), lse


def half_norm(q: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale / 2 * |q| ** 2` of queries `[..., D]`: times the spread of a row, it stands beside their product."""
    return wide(q).square().sum(-1) * (scale / 2)


def product_of_seen(
    weights: torch.Tensor, x: torch.Tensor, frontier: Frontier | None, *, by_row: bool = False
) -> torch.Tensor:
    """`weights @ x`, where what is not finite in `x` does not reach through a weight that the mask made 0.

    Plainly multiplied it would, since 0 * nan is nan.

    Args:
        weights: `[G, m, L]`, queries by rows of the stack; `[G, L, m]` if `by_row`.
        x: one row a column of `weights`.
        frontier: of the stack; None where every query sees every row.
        by_row: which of the two it is.
    """
    if frontier is None or x.sum().isfinite():
        return product(weights, x)
    bad = ~x.isfinite()
    seen = frontier.seen(weights.shape[-2 if by_row else -1])
    spoiled = torch.matmul((seen.mT if by_row else seen).float(), bad.float()) > 0
    return product(weights, x.masked_fill(bad, 0.0)).masked_fill(spoiled, torch.nan)
