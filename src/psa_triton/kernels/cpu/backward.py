"""The gradient of pyramid attention on a CPU: for each query block, gather its units again and walk the chain rule.

Query blocks are dealt to as many shares as there are threads, each with its own sums for the pyramid's rows. These are
added up in a fixed order, so the result is the same on every run with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from psa_triton.kernels.cpu.frontier import Frontier, find_frontier, matmul_of_seen
from psa_triton.kernels.cpu.gather import Part, Pyramid, add_part, gather_parts, list_length
from psa_triton.kernels.cpu.products import matmul, operand, wide
from psa_triton.kernels.cpu.threads import Workers
from psa_triton.kernels.cpu.unpool import unpool_gradient
from psa_triton.pyramid import pyramid_layout, row_tables, write_pyramid
from psa_triton.schedule import Schedule, make_schedule


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
    grad_lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `q`, `k` and `v`. Queries that see nothing have and give none.

    Scratch memory is that of one key head: its pyramid, and for each thread the float32 gradient of that pyramid.

    Args:
        grad_out: gradient of the output, `[B, Hq, Nq, D]`, dtype of `q`.
        q, k, v, levels, block_m, block_n, is_causal, scale: as they went into the forward.
        out: the forward's output, `[B, Hq, Nq, D]`.
        lse: the forward's log-sum-exp, float32 `[B, Hq, Nq]` (float64 for float64).
        grad_lse: gradient of the log-sum-exp, shape and dtype of `lse`; None where it is not used.

    Returns:
        The gradients, contiguous, each with shape and dtype of its tensor.
    """
    queries, tokens, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    layout = pyramid_layout(tokens, block_n, coarsest=int(levels.max()) if levels.numel() else 0)
    keys, values = q.new_empty(2, layout.rows, q.shape[3])
    pyramid = Pyramid(keys, values, layout, row_tables(layout, q.device))
    task = _Task(pyramid, block_m, first_limit=tokens - queries if is_causal else None, scale=scale)
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    with torch.no_grad(), Workers(torch.get_num_threads()) as workers:
        shares = min(workers.count, group * levels.shape[2])
        sums = wide(q).new_empty(shares, 2, *keys.shape)
        for b in range(len(k)):
            for h_kv in range(k.shape[1]):
                write_pyramid(k[b, h_kv], layout, keys)
                write_pyramid(v[b, h_kv], layout, values)
                heads = [
                    _Head(
                        q=q[b, h],
                        grad_out=grad_out[b, h],
                        out=out[b, h],
                        lse=lse[b, h],
                        grad_lse=grad_lse[b, h],
                        grad_q=grad_q[b, h],
                        schedule=make_schedule(levels[b, h], layout),
                    )
                    for h in range(h_kv * group, (h_kv + 1) * group)
                ]
                blocks = [(head, i) for head in heads for i in range(levels.shape[2])]
                workers.run(_add_share, ((task, blocks[s::shares], sums[s]) for s in range(shares)))
                for more in sums[1:]:
                    sums[0] += more
                grad_k[b, h_kv] = unpool_gradient(sums[0, 0], layout)
                grad_v[b, h_kv] = unpool_gradient(sums[0, 1], layout)
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
    lse: torch.Tensor
    offset: torch.Tensor
    """What the gradients of all of a query's logits have in common: `grad_lse - sum(grad_out * out)`."""
    limit: torch.Tensor | None
    """Last token that each query sees; None without a causal mask."""
    scale: float


def _add_share(task: _Task, blocks: list[tuple[_Head, int]], sums: torch.Tensor) -> None:
    """Write the query gradients of `blocks`, and the sums of their key and value gradients `[2, P, D]`."""
    sums.zero_()
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
    return _Block(
        # Both stand on the right of products, where rows must follow each other without gaps.
        q=operand(head.q[span]).contiguous(),
        grad_out=operand(head.grad_out[span]).contiguous(),
        lse=head.lse[span],
        offset=head.grad_lse[span] - common,
        limit=None if task.first_limit is None else torch.arange(span.start, span.stop) + task.first_limit,
        scale=task.scale,
    )


def _add_block(block: _Block, parts: Iterable[Part], unit: int, sums: torch.Tensor) -> torch.Tensor:
    """The gradient `[m, D]` of the block's queries; those of its keys and values are added to `sums [2, P, D]`."""
    grad_keys, grad_values = sums
    grad_q = sums.new_zeros(block.q.shape)
    for part in parts:
        of_q, of_keys, of_values = _differentiate(block, part)
        grad_q += of_q
        add_part(grad_keys, part, unit, of_keys)
        add_part(grad_values, part, unit, of_values)
    return grad_q


def _differentiate(block: _Block, part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the block's queries `[m, D]` and of the part's keys and values `[L, D]`, from this part alone.

    Everything between is laid out `[L, m]`: two of the three gradients are then products of matrices as they lie.
    """
    keys, values = operand(part.keys), operand(part.values)
    weights = wide(matmul(keys, block.q.T)).mul_(block.scale)
    weights.add_(part.log_count.to(weights.dtype)[:, None]).sub_(block.lse).exp_()
    grad_logits = wide(matmul(values, block.grad_out.T)).add_(block.offset).mul_(weights).mul_(block.scale)
    if block.limit is None or part.last_token is None:
        weights, grad_logits = weights.to(keys.dtype), grad_logits.to(keys.dtype)
        return matmul(grad_logits.T, keys), matmul(grad_logits, block.q), matmul(weights, block.grad_out)
    frontier = find_frontier(part.last_token, block.limit)
    weights, grad_logits = (_hide(x, frontier).to(keys.dtype) for x in (weights, grad_logits))
    return (
        matmul_of_seen(grad_logits.T, keys, frontier),
        matmul_of_seen(grad_logits, block.q, frontier, by_row=True),
        matmul_of_seen(weights, block.grad_out, frontier, by_row=True),
    )


def _hide(x: torch.Tensor, frontier: Frontier) -> torch.Tensor:
    """`x [L, m]`, overwritten with 0 where a query does not see a row; one that sees nothing has inf or nan there."""
    x[frontier.cut] = x[frontier.cut].masked_fill(frontier.hidden.T, 0.0)
    return x
