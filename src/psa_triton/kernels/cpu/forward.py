"""Pyramid attention on a CPU: for each query block, gather its units, a product with its bias, a softmax, a product."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from psa_triton.kernels.cpu import gather
from psa_triton.kernels.cpu.frontier import find_frontier, matmul_of_seen
from psa_triton.kernels.cpu.gather import Part, gather_parts, list_length
from psa_triton.kernels.cpu.pyramid import Pyramid, empty_pyramid
from psa_triton.products import half_norm, linear, matmul, operand, wide
from psa_triton.schedule import Schedule
from psa_triton.threads import Workers


def pyramid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    levels: torch.Tensor,
    *,
    block_m: int,
    block_n: int,
    is_causal: bool,
    scale: float,
    return_lse: bool,
    pool_correction: str = "none",
    key_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The definition of `kernels/reference.py`, fast. Same arguments and results; its gradient is in `backward.py`.

    Returns:
        The output with shape, dtype and strides of `q`, and the log-sum-exp float32 `[B, Hq, Nq]` (float64 for float64
        input) if `return_lse`.
    """
    batch, heads, queries, _ = q.shape
    group = heads // k.shape[1]
    pyramid = empty_pyramid(k, levels, block_n, pool_correction)
    out = torch.empty_like(q)
    lse = wide(q).new_empty(batch, heads, queries) if return_lse else None
    with torch.no_grad(), Workers(torch.get_num_threads()) as workers:
        for b in range(batch):
            for h_kv in range(k.shape[1]):
                pyramid.hold(k[b, h_kv], v[b, h_kv], None if key_mask is None else key_mask[b])
                for h in range(h_kv * group, (h_kv + 1) * group):
                    head = _Head(
                        q=q[b, h],
                        pyramid=pyramid,
                        schedule=pyramid.schedule(levels[b, h]),
                        first_limit=k.shape[2] - queries if is_causal else None,
                        scale=scale,
                        out=out[b, h],
                        lse=None if lse is None else lse[b, h],
                    )
                    workers.run(_attend_block, ((head, i, block_m) for i in range(levels.shape[2])))
    return out, lse


@dataclass(frozen=True)
class _Head:
    """One query head's inputs and outputs."""

    q: torch.Tensor
    pyramid: Pyramid
    schedule: Schedule
    first_limit: int | None
    scale: float
    out: torch.Tensor
    lse: torch.Tensor | None


def _attend_block(head: _Head, i: int, block_m: int) -> None:
    span = slice(i * block_m, min((i + 1) * block_m, len(head.q)))
    q = head.q[span]
    limit = None if head.first_limit is None else torch.arange(span.start, span.stop) + head.first_limit
    length = list_length(head.schedule, head.pyramid.layout, i)
    if length == 0:
        head.out[span].zero_()
        if head.lse is not None:
            head.lse[span] = float("-inf")
        return
    parts = gather_parts(head.pyramid, head.schedule, i, is_causal=limit is not None)
    if length <= gather.ROWS_AT_ONCE and head.lse is None:
        head.out[span], _ = _attend_part(q, _only(parts), limit, head.scale, want_lse=False)
        return
    out, lse = _merge(_attend_part(q, part, limit, head.scale, want_lse=True) for part in parts)
    head.out[span] = out
    if head.lse is not None:
        head.lse[span] = lse


def _only(parts: Iterator[Part]) -> Part:
    (part,) = parts
    return part


def _attend_part(
    q: torch.Tensor, part: Part, limit: torch.Tensor | None, scale: float, *, want_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Softmax attention of `q [m, D]` over a part: the output `[m, D]` and, if wanted, the log-sum-exp `[m]`."""
    logits = _logits(q, part, scale)
    frontier = empty = None
    if limit is not None and part.last_token is not None:
        frontier = find_frontier(part.last_token, limit)
        logits[:, frontier.cut].masked_fill_(frontier.hidden, float("-inf"))
        first = part.last_token.min()
        empty = limit < first if limit[0] < first else None
    if not want_lse:
        weights, lse = logits.softmax(-1), None
    else:
        wide_logits = wide(logits)
        weights = wide_logits.softmax(-1)
        # The largest weight is exp(largest logit - lse): two maxima cost less than a second exponential.
        lse = wide_logits.amax(-1) - weights.amax(-1).log()
        weights = weights.to(logits.dtype)
    values = operand(part.values)
    if frontier is None:
        return matmul(weights, values).to(q.dtype), lse
    if empty is not None:
        weights = weights.masked_fill(empty[:, None], 0.0)
        lse = None if lse is None else lse.masked_fill(empty, float("-inf"))
    return matmul_of_seen(weights, values, frontier).to(q.dtype), lse


def _merge(
    parts: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the union of parts from the attention over each: outputs weighted by their share of the mass."""
    outs, lses = zip(*parts, strict=True)
    each = torch.stack([x for x in lses if x is not None])
    lse = each.logsumexp(0)
    share = (each - lse.masked_fill(lse == float("-inf"), 0.0)).exp()
    return sum(
        (o.to(share.dtype) * w[:, None] for o, w in zip(outs, share, strict=True)), start=share.new_zeros(1)
    ), lse


def _logits(q: torch.Tensor, part: Part, scale: float) -> torch.Tensor:
    """`scale * q @ keys.T + log_count`, and the correction, in the dtype of products of q's dtype."""
    if q.dtype in (torch.bfloat16, torch.float64):
        logits = torch.addmm(part.log_count.to(q.dtype), q, part.keys.T, alpha=scale)
    else:
        logits = linear(q.float() * scale, part.keys.float(), part.log_count.float())
    if part.spread is None:
        return logits
    of_queries = half_norm(q, scale).to(logits.dtype)[:, None]
    # `addr_` would say it plainly, and takes nearly four times as long in bfloat16.
    return logits.addcmul_(of_queries, part.spread.to(logits.dtype), value=scale)
