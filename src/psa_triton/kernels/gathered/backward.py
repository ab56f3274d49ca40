"""The gradient of pyramid attention: for each stack of query blocks, gather its rows again and walk the chain rule.

Where threads share the work, each has its own sums for the pyramid's rows. These are added up in a fixed order, so on
a CPU the result is the same on every run with the same number of threads. On other devices it is as `Tensor.index_add_`
is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from psa_triton.blocks import Blocks
from psa_triton.kernels.gathered.forward import half_norm, mean_work, product_of_seen
from psa_triton.kernels.gathered.pyramid import Pyramid, pyramids
from psa_triton.kernels.gathered.schedule import Schedule, lists, stacked
from psa_triton.kernels.gathered.scratch import Scratch, thread_scratch
from psa_triton.kernels.gathered.stack import (
    Frontier,
    QueryBlocks,
    Stack,
    StackedBlocks,
    in_steps,
    make_stack,
    query_blocks,
)
from psa_triton.kernels.gathered.threads import share_tasks
from psa_triton.kernels.gathered.unpool import unpool_gradient, unpool_key_gradient
from psa_triton.kernels.gathered.ways import Way, choose_way, gradient_rows
from psa_triton.kernels.mean_key import common_logit, of_query_heads, shifted
from psa_triton.kernels.reading import Reading
from psa_triton.products import operand, product, wide


def pyramid_attention_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    levels: torch.Tensor,
    blocks: Blocks,
    reading: Reading,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `q`, `k` and `v`. Queries that see nothing have and give none.

    Scratch memory is that of few key heads: their pyramid, and for each thread the float32 gradient of that pyramid.

    Args:
        grad_out: gradient of the output, `[B, Hq, Nq, D]`, dtype of `q`.
        grad_lse: gradient of the log-sum-exp, shape and dtype of `lse`; None where it is not used.
        out: the forward's output, `[B, Hq, Nq, D]`.
        lse: the forward's log-sum-exp, float32 `[B, Hq, Nq]` (float64 for float64).
        q, k, v, levels, blocks, reading: as they went into the forward.

    Returns:
        The gradients, contiguous, each with shape and dtype of its tensor.
    """
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    with torch.no_grad(), thread_scratch() as scratch:
        for b, of_keys, of, pyramid in pyramids(k, v, levels, blocks, reading, scratch):
            mean, own_lse = pyramid.mean_key, lse[b, of]
            if mean is not None:
                own_lse = shifted(own_lse, -common_logit(q[b, of], mean, reading.scale))
            heads = _Heads(
                q=q[b, of],
                grad_out=grad_out[b, of],
                out=out[b, of],
                lse=own_lse,
                grad_lse=grad_lse[b, of],
                grad_q=grad_q[b, of],
                pyramid=pyramid,
                schedule=pyramid.schedule(levels[b, of]),
                shift=blocks.shift if blocks.is_causal else None,
                scale=reading.scale,
            )
            if (heads.schedule.start.diff() == 0).any():  # such blocks are in no stack
                heads.grad_q.zero_()
            way = choose_way(q.dtype, q.device, mean_work(heads.q, heads.schedule))
            stacks = _stacks(heads, blocks.m, way)
            shares = min(torch.get_num_threads(), len(stacks)) if way.threads else 1
            sums = [_empty_sums(pyramid) for _ in range(shares)]
            of_threads = ((stacks[share::shares], sums[share]) for share in range(shares))
            share_tasks(partial(_add_shares, heads), of_threads, threads=way.threads)
            for more in sums[1:]:
                sums[0].add(more)
            if mean is not None:  # the log-sum-exp has its part, too
                of_lse = heads.grad_lse.masked_fill(heads.lse == -torch.inf, 0.0)[..., None]
                heads.grad_q.add_(of_lse * of_query_heads(mean, len(heads.q)) * reading.scale)
            grad_k[b, of_keys] = unpool_key_gradient(sums[0].keys, sums[0].spread, k[b, of_keys], pyramid)
            grad_v[b, of_keys] = unpool_gradient(sums[0].values, pyramid.layout, pyramid.kept)
            del pyramid, heads, sums  # before the next are computed
    return grad_q, grad_k, grad_v


@dataclass(frozen=True)
class _Heads:
    """The query heads that read a pyramid: `[G, Nq, D]`, and `[G, Nq]` for what belongs to the log-sum-exp."""

    q: torch.Tensor
    grad_out: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    grad_lse: torch.Tensor
    grad_q: torch.Tensor
    """Written here."""
    pyramid: Pyramid
    schedule: Schedule
    shift: int | None
    """Query `i` sees tokens up to `i + shift`; None without a causal mask."""
    scale: float


@dataclass(frozen=True)
class _Queries:
    """The queries of a stack: operands of products `[G, m, D]`, and what belongs to each query `[G, m]`."""

    q: torch.Tensor
    grad_out: torch.Tensor
    half_norm: torch.Tensor
    """See `forward.half_norm`."""
    lse: torch.Tensor
    """inf for queries that see nothing, which makes their weights 0."""
    offset: torch.Tensor
    """What the gradients of all of a query's logits have in common: `grad_lse - sum(grad_out * out)`."""


@dataclass(frozen=True)
class _Sums:
    """Gradients of a pyramid, summed over query blocks; in the dtype of sums."""

    keys: torch.Tensor
    values: torch.Tensor
    spread: torch.Tensor | None

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [x for x in (self.keys, self.values, self.spread) if x is not None]

    def add(self, other: _Sums) -> None:
        for mine, more in zip(self.tensors, other.tensors, strict=True):
            mine += more


def _empty_sums(pyramid: Pyramid) -> _Sums:
    keys, values = wide(pyramid.keys[:0]).new_empty(2, *pyramid.keys.shape)
    return _Sums(keys, values, None if pyramid.spread is None else torch.empty_like(pyramid.spread))


@dataclass(frozen=True)
class _Gradients:
    """What the queries of a stack and the rows that they read owe to each other."""

    queries: torch.Tensor
    """`[G, m, D]`."""
    keys: torch.Tensor
    """`[G, L, D]`, as `values`."""
    values: torch.Tensor
    spread: torch.Tensor | None
    """`[G, L]`, where logits are corrected by it."""


def _stacks(heads: _Heads, block_m: int, way: Way) -> list[StackedBlocks]:
    at_once = gradient_rows(way, heads.pyramid.keys)
    return [
        (blocks, numbers)
        for blocks in query_blocks(len(heads.q), heads.q.shape[1], block_m)
        for numbers in stacked(heads.schedule, blocks.numbers(), at_once)
    ]


def _add_shares(heads: _Heads, shares: Iterable[tuple[Iterable[StackedBlocks], _Sums]]) -> None:
    """Write the query gradients of stacks, and the sums of those of the pyramid."""
    with thread_scratch() as scratch:
        for stacks, sums in shares:
            for x in sums.tensors:
                x.zero_()
            for blocks, numbers in stacks:
                limit = None if heads.shift is None else blocks.positions(numbers, heads.q.device) + heads.shift
                steps = lists(heads.schedule, numbers, heads.pyramid.nothing)
                stack = make_stack(heads.pyramid, steps, limit)
                of = _differentiate(_load(heads, blocks, numbers), stack, heads.scale, scratch)
                blocks.put(heads.grad_q, numbers, of.queries)
                for total, gradient in ((sums.keys, of.keys), (sums.values, of.values), (sums.spread, of.spread)):
                    if total is not None and gradient is not None:
                        at = in_steps(total, heads.pyramid)
                        at.index_add_(0, steps.flatten(), gradient.to(total.dtype).reshape(-1, at.shape[1]))


def _load(heads: _Heads, blocks: QueryBlocks, numbers: Sequence[int]) -> _Queries:
    q, lse = blocks.take(heads.q, numbers), blocks.take(heads.lse, numbers)
    empty = lse == -torch.inf
    # Whatever is handed down to queries that see nothing: theirs is no gradient.
    grad_out = blocks.take(heads.grad_out, numbers).masked_fill(empty[..., None], 0.0)
    grad_lse = blocks.take(heads.grad_lse, numbers).masked_fill(empty, 0.0)
    common = (wide(grad_out) * wide(blocks.take(heads.out, numbers))).sum(-1)
    return _Queries(
        q=operand(q),
        grad_out=operand(grad_out),
        half_norm=half_norm(q, heads.scale),
        lse=lse.masked_fill(empty, torch.inf),
        offset=grad_lse - common,
    )


def _differentiate(queries: _Queries, stack: Stack, scale: float, scratch: Scratch) -> _Gradients:
    """Gradients from this stack.

    Everything between is laid out `[G, L, m]`: most gradients are then products of matrices as they lie.
    """
    frontier, dtype = stack.frontier, queries.q.dtype
    keys = stack.rows(stack.pyramid.keys, dtype, scratch, "keys")
    values = stack.rows(stack.pyramid.values, dtype, scratch, "values")
    weights = wide(product(keys, queries.q.mT))
    if stack.spread is not None:
        weights.addcmul_(stack.spread[..., None], queries.half_norm[..., None, :])
    weights.mul_(scale).add_(stack.log_count[..., None]).sub_(queries.lse[..., None, :]).exp_()
    grad_logits = wide(product(values, queries.grad_out.mT)).add_(queries.offset[..., None, :])
    grad_logits.mul_(weights).mul_(scale)
    if frontier is not None:
        weights, grad_logits = (_hide(x, frontier) for x in (weights, grad_logits))
    to_queries = partial(product_of_seen, frontier=frontier)
    to_rows = partial(product_of_seen, frontier=frontier, by_row=True)
    narrow = grad_logits.to(dtype)
    grad_q = to_queries(narrow.mT, keys)
    grad_spread = None
    if stack.spread is not None:
        along = to_queries(grad_logits.mT, stack.spread[..., None])
        grad_q = wide(grad_q) + along * scale * queries.q
        grad_spread = to_rows(grad_logits, queries.half_norm[..., None])[..., 0]
    return _Gradients(
        queries=grad_q,
        keys=to_rows(narrow, queries.q),
        values=to_rows(weights.to(dtype), queries.grad_out),
        spread=grad_spread,
    )


def _hide(x: torch.Tensor, frontier: Frontier) -> torch.Tensor:
    """`x [G, L, m]`, overwritten with 0 where a query does not see a row; one without any has inf or nan there."""
    x[..., frontier.cut :, :].masked_fill_(frontier.hidden.mT, 0.0)
    return x
