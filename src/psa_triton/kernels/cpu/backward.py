"""The gradient of pyramid attention on a CPU: for each query block, gather its units again and walk the chain rule.

Query blocks are dealt to as many shares as there are threads, each with its own sums for the pyramid's rows. These are
added up in a fixed order, so the result is the same on every run with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from psa_triton.kernels.cpu.frontier import Frontier, find_frontier, matmul_of_seen
from psa_triton.kernels.cpu.gather import Part, add_part, gather_parts, list_length
from psa_triton.kernels.cpu.pyramid import Pyramid, empty_pyramid
from psa_triton.kernels.cpu.unpool import unpool_gradient, unpool_key_gradient
from psa_triton.products import half_norm, matmul, operand, wide
from psa_triton.schedule import Schedule
from psa_triton.threads import Workers


def pyramid_attention_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    levels: torch.Tensor,
    *,
    block_m: int,
    block_n: int,
    is_causal: bool,
    scale: float,
    pool_correction: str = "none",
    key_mask: torch.Tensor | None = None,
    grad_lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `q`, `k` and `v`. Queries that see nothing have and give none.

    Scratch memory is that of one key head: its pyramid, and for each thread the float32 gradient of that pyramid.

    Args:
        grad_out: gradient of the output, `[B, Hq, Nq, D]`, dtype of `q`.
        q, k, v, levels, block_m, block_n, is_causal, scale, pool_correction, key_mask: as they went into the forward.
        out: the forward's output, `[B, Hq, Nq, D]`.
        lse: the forward's log-sum-exp, float32 `[B, Hq, Nq]` (float64 for float64).
        grad_lse: gradient of the log-sum-exp, shape and dtype of `lse`; None where it is not used.

    Returns:
        The gradients, contiguous, each with shape and dtype of its tensor.
    """
    queries, tokens, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    pyramid = empty_pyramid(k, levels, block_n, pool_correction)
    task = _Task(pyramid, block_m, first_limit=tokens - queries if is_causal else None, scale=scale)
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    with torch.no_grad(), Workers(torch.get_num_threads()) as workers:
        shares = min(workers.count, group * levels.shape[2])
        sums = [_empty_sums(pyramid) for _ in range(shares)]
        for b in range(len(k)):
            for h_kv in range(k.shape[1]):
                pyramid.hold(k[b, h_kv], v[b, h_kv], None if key_mask is None else key_mask[b])
                heads = [
                    _Head(
                        q=q[b, h],
                        grad_out=grad_out[b, h],
                        out=out[b, h],
                        lse=lse[b, h],
                        grad_lse=grad_lse[b, h],
                        grad_q=grad_q[b, h],
                        schedule=pyramid.schedule(levels[b, h]),
                    )
                    for h in range(h_kv * group, (h_kv + 1) * group)
                ]
                blocks = [(head, i) for head in heads for i in range(levels.shape[2])]
                workers.run(_add_share, ((task, blocks[s::shares], sums[s]) for s in range(shares)))
                for more in sums[1:]:
                    sums[0].add(more)
                grad_k[b, h_kv] = unpool_key_gradient(sums[0].keys, sums[0].spread, k[b, h_kv], pyramid)
                grad_v[b, h_kv] = unpool_gradient(sums[0].values, pyramid.layout, pyramid.kept)
    return grad_q, grad_k, grad_v


@dataclass(frozen=True)
class _Task:
    """What all query blocks that read one key head share."""

    pyramid: Pyramid
    block_m: int
    first_limit: int | None
    """Last token that query 0 sees; None without a causal mask."""
    scale: float


@dataclass(frozen=True)
class _Head:
    """One query head: `[Nq, D]`, and `[Nq]` for what belongs to the log-sum-exp."""

    q: torch.Tensor
    grad_out: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    grad_lse: torch.Tensor
    grad_q: torch.Tensor
    """Written here."""
    schedule: Schedule


@dataclass(frozen=True)
class _Block:
    """One query block: operands of products `[m, D]`, and what belongs to its queries `[m]`."""

    q: torch.Tensor
    grad_out: torch.Tensor
    half_norm: torch.Tensor
    """See `products.half_norm`."""
    lse: torch.Tensor
    offset: torch.Tensor
    """What the gradients of all of a query's logits have in common: `grad_lse - sum(grad_out * out)`."""
    limit: torch.Tensor | None
    """Last token that each query sees; None without a causal mask."""
    scale: float


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
    keys, values = wide(pyramid.keys).new_empty(2, *pyramid.keys.shape)
    return _Sums(keys, values, None if pyramid.spread is None else torch.empty_like(pyramid.spread))


@dataclass(frozen=True)
class _Gradients:
    """What one query block and one part of its list owe to each other."""

    queries: torch.Tensor
    """`[m, D]`."""
    keys: torch.Tensor
    """`[L, D]`, as `values`."""
    values: torch.Tensor
    spread: torch.Tensor | None
    """`[L]`, where logits are corrected by it."""


def _add_share(task: _Task, blocks: list[tuple[_Head, int]], sums: _Sums) -> None:
    """Write the query gradients of `blocks`, and the sums of those of the pyramid."""
    for x in sums.tensors:
        x.zero_()
    for head, i in blocks:
        span = slice(i * task.block_m, min((i + 1) * task.block_m, len(head.q)))
        if list_length(head.schedule, task.pyramid.layout, i) == 0:
            head.grad_q[span].zero_()
            continue
        block = _load_block(task, head, span)
        parts = gather_parts(task.pyramid, head.schedule, i, is_causal=block.limit is not None)
        head.grad_q[span] = _add_block(block, parts, task.pyramid.layout.unit, sums)


def _load_block(task: _Task, head: _Head, span: slice) -> _Block:
    common = (wide(head.grad_out[span]) * wide(head.out[span])).sum(-1)
    q = head.q[span]
    return _Block(
        # Both stand on the right of products, where rows must follow each other without gaps.
        q=operand(q).contiguous(),
        grad_out=operand(head.grad_out[span]).contiguous(),
        half_norm=half_norm(q, task.scale),
        lse=head.lse[span],
        offset=head.grad_lse[span] - common,
        limit=None if task.first_limit is None else torch.arange(span.start, span.stop) + task.first_limit,
        scale=task.scale,
    )


def _add_block(block: _Block, parts: Iterable[Part], unit: int, sums: _Sums) -> torch.Tensor:
    """The gradient `[m, D]` of the block's queries; those of what it reads are added to `sums`."""
    grad_q = sums.keys.new_zeros(block.q.shape)
    for part in parts:
        of = _differentiate(block, part)
        grad_q += of.queries
        add_part(sums.keys, part, unit, of.keys)
        add_part(sums.values, part, unit, of.values)
        if sums.spread is not None and of.spread is not None:
            add_part(sums.spread, part, unit, of.spread)
    return grad_q


def _differentiate(block: _Block, part: Part) -> _Gradients:
    """Gradients from this part alone.

    Everything between is laid out `[L, m]`: most gradients are then products of matrices as they lie.
    """
    keys, values = operand(part.keys), operand(part.values)
    weights = wide(matmul(keys, block.q.T))
    if part.spread is not None:
        weights.addcmul_(part.spread[:, None], block.half_norm)
    weights.mul_(block.scale).add_(part.log_count.to(weights.dtype)[:, None]).sub_(block.lse).exp_()
    grad_logits = wide(matmul(values, block.grad_out.T)).add_(block.offset).mul_(weights).mul_(block.scale)
    if block.limit is None or part.last_token is None:
        to_queries = to_rows = matmul
    else:
        frontier = find_frontier(part.last_token, block.limit)
        to_queries = partial(matmul_of_seen, frontier=frontier)
        to_rows = partial(matmul_of_seen, frontier=frontier, by_row=True)
        weights, grad_logits = (_hide(x, frontier) for x in (weights, grad_logits))
    narrow = grad_logits.to(keys.dtype)
    grad_q = to_queries(narrow.T, keys)
    grad_spread = None
    if part.spread is not None:
        along = to_queries(grad_logits.T, part.spread[:, None])
        grad_q = wide(grad_q) + along * block.scale * block.q
        grad_spread = to_rows(grad_logits, block.half_norm[:, None])[:, 0]
    return _Gradients(
        queries=grad_q,
        keys=to_rows(narrow, block.q),
        values=to_rows(weights.to(keys.dtype), block.grad_out),
        spread=grad_spread,
    )


def _hide(x: torch.Tensor, frontier: Frontier) -> torch.Tensor:
    """`x [L, m]`, overwritten with 0 where a query does not see a row; one that sees nothing has inf or nan there."""
    x[frontier.cut].masked_fill_(frontier.hidden.T, 0.0)
    return x
