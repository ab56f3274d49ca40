"""Key heads at every resolution, as many at once as fit beside what is computed with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch.nn import functional as F

from psa_triton.kernels.gathered.schedule import Schedule, make_schedule, step_size
from psa_triton.products import wide
from psa_triton.pyramid import (
    PyramidLayout,
    RowTables,
    kept_row_tables,
    pyramid_layout,
    row_tables,
    write_pyramid,
    write_spread,
)

_AT_ONCE: Final = 6 << 20
"""Bytes of the heads that are held at once, if they are more than one: short sequences take few calls, and a long one
no more memory than a head of it."""


@dataclass(frozen=True)
class Pyramid:
    """The rows of H key heads one after another, keys and values `[H, P + S, D]`, and what is known of them.

    Behind the rows of each head stand those of one step of nothing: zeros, which weigh nothing. They fill up lists.
    """

    keys: torch.Tensor
    values: torch.Tensor
    spread: torch.Tensor | None
    """`[H, P + S]`, float32 (float64 for float64), where logits are corrected by it; see `pyramid.spread`."""
    layout: PyramidLayout
    log_count: torch.Tensor
    """`[H, P + S]`, ln of the tokens of each row, in the dtype of sums."""
    last_token: torch.Tensor
    """int64 `[H, P + S]`, of each row. Nothing ends before every token: a causal mask hides none of it."""
    kept: torch.Tensor | None
    """int64 `[P]`, tokens of each row where a key mask leaves some out; else None."""

    @property
    def nothing(self) -> int:
        """A step of nothing."""
        return self.layout.rows // step_size(self.layout)

    def schedule(self, levels: torch.Tensor) -> Schedule:
        """What the query blocks of the heads that read this, `levels` int8 `[Hq, nq, nk]`, read of it."""
        of_each = levels.reshape(len(self.keys), -1, levels.shape[-1])
        return make_schedule(of_each, self.layout, self.kept, stride=self.nothing + 1)


def layout_of(k: torch.Tensor, levels: torch.Tensor, block_n: int) -> PyramidLayout:
    """Of pyramids of `k [B, Hkv, Nk, D]` with all that `levels` name."""
    return pyramid_layout(k.shape[2], block_n, coarsest=int(levels.max()) if levels.numel() else 0)


def held_at_once(k: torch.Tensor, layout: PyramidLayout) -> Iterator[tuple[int, slice]]:
    """The items of a batch, and of each the key heads, that one pyramid holds."""
    head = 2 * layout.rows * k.shape[3] * k.element_size()
    count = max(1, _AT_ONCE // head)
    for item in range(len(k)):
        for first in range(0, k.shape[1], count):
            yield item, slice(first, min(first + count, k.shape[1]))


def build_pyramid(
    k: torch.Tensor, v: torch.Tensor, layout: PyramidLayout, pool_correction: str, keep: torch.Tensor | None
) -> Pyramid:
    """Of keys and values `[H, Nk, D]`; `keep`, bool `[Nk]`, says which tokens are there; None if all are."""
    heads, more = len(k), step_size(layout)
    if keep is None or keep.all():
        log_count, last_token = _whole_tables(layout, heads, wide(k[:0]).dtype, k.device)
        kept = None
    else:
        tables = kept_row_tables(layout, keep)
        log_count, last_token = _with_nothing(tables, layout, heads, wide(k[:0]).dtype)
        kept = tables.count
    keys, values = k.new_empty(2, heads, layout.rows + more, k.shape[2])
    for rows, x in ((keys, k), (values, v)):
        rows[:, layout.rows :] = 0.0
        write_pyramid(x, layout, rows, kept)
    spread = None
    if pool_correction == "isotropic":
        spread = wide(k[:0]).new_empty(heads, layout.rows + more)
        write_spread(k, layout, spread, kept)
    return Pyramid(keys, values, spread, layout, log_count, last_token, kept)


@lru_cache(maxsize=32)
def _whole_tables(
    layout: PyramidLayout, heads: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    return _with_nothing(row_tables(layout, device), layout, heads, dtype)


def _with_nothing(
    tables: RowTables, layout: PyramidLayout, heads: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Pyramid.log_count` and `Pyramid.last_token`."""
    more = (0, step_size(layout))
    log_count = F.pad(tables.log_count(dtype), more, value=-torch.inf)
    return log_count.expand(heads, -1).contiguous(), F.pad(tables.last_token, more, value=-1).repeat(heads, 1)
