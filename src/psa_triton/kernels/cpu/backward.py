"""The gradient of pyramid attention on a CPU: for each query block, gather its units again and walk the chain rule.

Query blocks are dealt to as many shares as there are threads, each with its own sums for the pyramid's rows, added up in
a fixed order: the result is the same on every run with the same number of threads.
"""

from __future__ import annotations

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
        The gradients, each with shape and dtype of its tensor.
    """
    batch, heads, queries, dim = q.shape
    group = heads // k.shape[1]
    layout = pyramid_layout(k.shape[2], block_n, coarsest=int(levels.max()) if levels.numel() else 0)
    keys, values = q.new_empty(2, layout.rows, dim)
    pyramid = Pyramid(keys, values, layout, row_tables(layout, q.device))
    grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
    with torch.no_grad(), Workers(torch.get_num_threads()) as workers:
        shares = min(workers.count, group * levels.shape[2])
        sums = wide(q).new_empty(shares, 2, layout.rows, dim)
        for b in range(batch):
            for h_kv in range(k.shape[1]):
                write_pyramid(k[b, h_kv], layout, keys)
                write_pyramid(v[b, h_kv], layout, values)
                query_heads = [
                    _Head(
                        q=q[b, h],
                        grad_out=grad_out[b, h],
                        out=out[b, h],
                        lse=lse[b, h],
                        grad_lse=None if grad_lse is None else grad_lse[b, h],
                        pyramid=pyramid,
                        schedule=make_schedule(levels[b, h], layout),
                        block_m=block_m,
                        first_limit=k.shape[2] - queries if is_causal else None,
                        scale=scale,
                        grad_q=grad_q[b, h],
                    )
                    for h in range(h_kv * group, (h_kv + 1) * group)
                ]
                blocks = [(head, i) for head in query_heads for i in range(levels.shape[2])]
                workers.run(_add_share, ((blocks[s::shares], sums[s]) for s in range(shares)))
                for more in sums[1:]:
                    sums[0] += more
                grad_k[b, h_kv] = unpool_gradient(sums[0, 0], layout)
                grad_v[b, h_kv] = unpool_gradient(sums[0, 1], layout)
    return grad_q, grad_k, grad_v


@dataclass(frozen=True)
class _Head:
    """One query head's inputs and the gradient of its queries."""

    q: torch.Tensor
    grad_out: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    grad_lse: torch.Tensor | None
    pyramid: Pyramid
    schedule: Schedule
    block_m: int
    first_limit: int | None
    scale: float
    grad_q: torch.Tensor


@dataclass(frozen=True)
class _Block:
    """One query block's inputs: operands of products `[m, D]`, and what its rows are corrected by, float32 `[m]`."""

    q: torch.Tensor
    grad_out: torch.Tensor
    lse: torch.Tensor
    offset: torch.Tensor
    """What a logit's gradient has in common with all others of its query: `sum(grad_out * out) - grad_lse`."""
    limit: torch.Tensor | None
    scale: float


def _add_share(blocks: list[tuple[_Head, int]], sums: torch.Tensor) -> None:
    """Write the query gradients of `blocks`, and their key and value gradients to `sums [2, P, D]`."""
    sums.zero_()
    for head, i in blocks:
        span = slice(i * head.block_m, min((i + 1) * head.block_m, len(head.q)))
        if list_length(head.schedule, head.pyramid.layout, i) == 0:
            head.grad_q[span].zero_()
            continue
        head.grad_q[span] = _add_block(head, i, _load_block(head, span), sums)


def _load_block(head: _Head, span: slice) -> _Block:
    offset = (wide(head.grad_out[span]) * wide(head.out[span])).sum(-1)
    if head.grad_lse is not None:
        offset -= head.grad_lse[span]
    return _Block(
        # Both stand on the right of products, where rows must follow each other without gaps.
        q=operand(head.q[span]).contiguous(),
        grad_out=operand(head.grad_out[span]).contiguous(),
        lse=head.lse[span],
        offset=offset,
        limit=None if head.first_limit is None else torch.arange(span.start, span.stop) + head.first_limit,
        scale=head.scale,
    )


def _add_block(head: _Head, i: int, block: _Block, sums: torch.Tensor) -> torch.Tensor:
    """The gradient `[m, D]` of the block's queries; those of its keys and values are added to `sums [2, P, D]`."""
    grad_keys, grad_values = sums
    grad_q = sums.new_zeros(block.q.shape)
    for part in gather_parts(head.pyramid, head.schedule, i, is_causal=block.limit is not None):
        of_q, of_keys, of_values = _differentiate(block, part)
        grad_q += of_q
        add_part(grad_keys, part, head.pyramid.layout.unit, of_keys)
        add_part(grad_values, part, head.pyramid.layout.unit, of_values)
    return grad_q


def _differentiate(block: _Block, part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the block's queries `[m, D]` and of the part's keys and values `[L, D]`, from this part alone.

    Everything between is laid out `[L, m]`: two of the three gradients are then products of matrices as they lie.
    """
    keys, values = operand(part.keys), operand(part.values)
    weights = wide(matmul(keys, block.q.T)).mul_(block.scale)
    weights.add_(part.log_count.to(weights.dtype)[:, None]).sub_(block.lse).exp_()
    grad_logits = wide(matmul(values, block.grad_out.T)).sub_(block.offset).mul_(weights).mul_(block.scale)
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
    """`x [L, m]` with zeros where a query does not see a row; whatever stood there, as a query that sees nothing has."""
    x[frontier.cut] = x[frontier.cut].masked_fill(frontier.hidden.T, 0.0)
    return x
