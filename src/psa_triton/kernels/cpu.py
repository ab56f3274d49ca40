"""Pyramid attention on a CPU: gather each query block's units, then two matrix products and a softmax.

The work is many medium-sized products, so Python threads with one ATen thread each share the query blocks. That keeps
every core busy without the synchronisation that several threads inside one product would cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import torch
import torch.nn.functional as F

from psa_triton.pyramid import PyramidLayout, RowTables, pyramid_layout, row_tables, write_pyramid
from psa_triton.schedule import Schedule, make_schedule

_ROWS_AT_ONCE = 8192  # of a query block's list; longer lists are read in parts and merged, to bound the scratch memory


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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The definition of `kernels/reference.py`, fast. Same arguments and results; no gradient.

    Returns:
        The output with shape, dtype and strides of `q`, and the log-sum-exp float32 `[B, Hq, Nq]` (float64 for float64
        input) if `return_lse`.
    """
    batch, heads, queries, dim = q.shape
    group = heads // k.shape[1]
    layout = pyramid_layout(k.shape[2], block_n, coarsest=int(levels.max()) if levels.numel() else 0)
    tables = row_tables(layout, q.device)
    keys, values = q.new_empty(2, layout.rows, dim)  # one key head's pyramid at a time
    out = torch.empty_like(q)
    lse = _wide(q).new_empty(batch, heads, queries) if return_lse else None
    with torch.no_grad(), _Workers(torch.get_num_threads()) as workers:
        for b in range(batch):
            for h_kv in range(k.shape[1]):
                write_pyramid(k[b, h_kv], layout, keys)
                write_pyramid(v[b, h_kv], layout, values)
                for h in range(h_kv * group, (h_kv + 1) * group):
                    head = _Head(
                        q=q[b, h],
                        keys=keys,
                        values=values,
                        tables=tables,
                        layout=layout,
                        schedule=make_schedule(levels[b, h], layout),
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
    keys: torch.Tensor
    values: torch.Tensor
    tables: RowTables
    layout: PyramidLayout
    schedule: Schedule
    first_limit: int | None
    scale: float
    out: torch.Tensor
    lse: torch.Tensor | None


@dataclass(frozen=True)
class _Part:
    """A piece of a query block's list: keys and values `[L, D]`, and the row tables' entries `[L]`."""

    keys: torch.Tensor
    values: torch.Tensor
    log_count: torch.Tensor
    last_token: torch.Tensor | None


def _attend_block(head: _Head, i: int, block_m: int) -> None:
    span = slice(i * block_m, min((i + 1) * block_m, len(head.q)))
    q = head.q[span]
    limit = None if head.first_limit is None else torch.arange(span.start, span.stop)[:, None] + head.first_limit
    s = head.schedule
    length = (s.unit_start[i + 1] - s.unit_start[i]) * head.layout.unit + s.row_start[i + 1] - s.row_start[i]
    if length == 0:
        head.out[span].zero_()
        if head.lse is not None:
            head.lse[span] = float("-inf")
        return
    if length <= _ROWS_AT_ONCE and head.lse is None:
        head.out[span], _ = _attend_part(q, _only(_parts(head, i)), limit, head.scale, want_lse=False)
        return
    out, lse = _merge(_attend_part(q, part, limit, head.scale, want_lse=True) for part in _parts(head, i))
    head.out[span] = out
    if head.lse is not None:
        head.lse[span] = lse


def _only(parts: Iterator[_Part]) -> _Part:
    (part,) = parts
    return part


def _parts(head: _Head, i: int) -> Iterator[_Part]:
    """The list of query block `i`, gathered in parts of at most `_ROWS_AT_ONCE` rows of units (or of coarse rows)."""
    s, unit = head.schedule, head.layout.unit
    units = s.units[s.unit_start[i] : s.unit_start[i + 1]]
    coarse = s.rows[s.row_start[i] : s.row_start[i + 1]]
    if len(units) * unit + len(coarse) <= _ROWS_AT_ONCE:
        yield _gather(head, units, coarse)
        return
    at_once = _ROWS_AT_ONCE // unit
    for start in range(0, len(units), at_once):
        yield _gather(head, units[start : start + at_once], coarse[:0])
    for start in range(0, len(coarse), _ROWS_AT_ONCE):
        yield _gather(head, units[:0], coarse[start : start + _ROWS_AT_ONCE])


def _gather(head: _Head, units: torch.Tensor, coarse: torch.Tensor) -> _Part:
    unit = head.layout.unit
    whole = len(head.keys) // unit * unit  # coarse levels may end between two units

    def pick(table: torch.Tensor) -> torch.Tensor:
        width = table.shape[1:].numel()
        picked = table[:whole].view(-1, unit * width).index_select(0, units).view(-1, *table.shape[1:])
        return torch.cat([picked, table.index_select(0, coarse)]) if len(coarse) else picked

    last_token = None if head.first_limit is None else pick(head.tables.last_token)
    return _Part(pick(head.keys), pick(head.values), pick(head.tables.log_count), last_token)


def _attend_part(
    q: torch.Tensor, part: _Part, limit: torch.Tensor | None, scale: float, *, want_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Softmax attention of `q [m, D]` over a part: the output `[m, D]` and, if wanted, the log-sum-exp `[m]`."""
    logits = _logits(q, part.keys, part.log_count, scale)
    empty = None
    if limit is not None and part.last_token is not None:
        # Only the columns at the causal frontier are hidden from some rows; the others need no mask.
        cut = (part.last_token > limit[0]).nonzero().squeeze(1)
        hidden = part.last_token[cut] > limit
        logits[:, cut] = logits[:, cut].masked_fill(hidden, float("-inf"))
        empty = limit < part.last_token.min()
    if not want_lse:
        weights, lse = logits.softmax(-1), None
    else:
        wide = _wide(logits)
        weights = wide.softmax(-1)
        # The largest weight is exp(largest logit - lse): two maxima cost less than a second exponential.
        lse = wide.amax(-1) - weights.amax(-1).log()
        weights = weights.to(logits.dtype)
    if empty is not None:
        weights = weights.masked_fill(empty, 0.0)
        lse = None if lse is None else lse.masked_fill(empty[:, 0], float("-inf"))
        return _weighted_sum_at_frontier(weights, part.values, cut, hidden).to(q.dtype), lse
    return _matmul(weights, part.values).to(q.dtype), lse


def _weighted_sum_at_frontier(
    weights: torch.Tensor, values: torch.Tensor, cut: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """`weights @ values`, where a value that is not finite does not reach rows it is hidden from (0 * nan is nan)."""
    bad = ~values[cut].isfinite().all(dim=1)
    if not bad.any():
        return _matmul(weights, values)
    clean = values.clone()
    clean[cut[bad]] = 0.0
    spoiled = (~hidden[:, bad]).any(dim=1)
    return _matmul(weights, clean).masked_fill(spoiled[:, None], float("nan"))


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


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _logits(q: torch.Tensor, keys: torch.Tensor, log_count: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale * q @ keys.T + log_count` in the dtype that products of q's dtype are computed in here."""
    if q.dtype in (torch.bfloat16, torch.float64):
        return torch.addmm(log_count.to(q.dtype), q, keys.T, alpha=scale)
    return _linear(q.float() * scale, keys.float(), log_count.float())


def _matmul(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if weights.dtype == torch.float32:
        return _linear(weights, values.float().T, None)
    return weights @ values


def _onednn_linear() -> Callable[..., torch.Tensor] | None:
    """The float32 `mm` of torch calls MKL, which leaves AVX-512 unused on AMD; oneDNN's product is 2.1x as fast there.

    torch reaches oneDNN's float32 product only through the operator that its compiler emits. Where a build lacks it,
    `F.linear` gives the same numbers.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_FAST_LINEAR = _onednn_linear()


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if _FAST_LINEAR is None:
        return F.linear(x, weight, bias)
    return _FAST_LINEAR(x, weight, bias, "none", [], "")


class _Workers:
    """Threads that share tasks, each computing with one ATen thread."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> _Workers:
        self._pool = ThreadPoolExecutor(self._count, "psa", initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()
        # set_num_threads also sets the default of threads yet to start; this thread's count is what it was.
        torch.set_num_threads(self._count)

    def run(self, function: Callable[..., None], tasks: Iterator[tuple]) -> None:
        """Call `function(*task)` for every task; tasks are handed out one at a time, in order."""
        lock = Lock()

        def work() -> None:
            with torch.no_grad():
                while True:
                    with lock:
                        task = next(tasks, None)
                    if task is None:
                        return
                    function(*task)

        for future in [self._pool.submit(work) for _ in range(self._count)]:
            future.result()
