"""One key head at every resolution, in memory that all key heads use one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

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
from psa_triton.schedule import Schedule, make_schedule, step_size


@dataclass
class Pyramid:
    """One key head's rows, keys and values `[P + S, D]`, and what is known of them.

    Behind the rows of the pyramid stand those of one step of nothing: zeros, which weigh nothing. They fill up lists.
    """

    keys: torch.Tensor
    values: torch.Tensor
    spread: torch.Tensor | None
    """`[P + S]`, float32 (float64 for float64), where logits are corrected by it; see `pyramid.spread`."""
    layout: PyramidLayout
    tables: RowTables
    """`[P + S]`. Nothing ends before every token: a causal mask hides none of it."""
    log_count: torch.Tensor
    """`[P + S]`, of `tables`, in the dtype of sums."""
    kept: torch.Tensor | None = None
    """int64 `[P]`, tokens of each row where a key mask leaves some of this head out; else None."""

    @property
    def nothing(self) -> int:
        """The step of nothing."""
        return self.layout.rows // step_size(self.layout)

    def hold(self, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Write the rows of one key head, `k` and `v` `[Nk, D]`; `keep`, bool `[Nk]`, says which tokens are there."""
        if keep is None or keep.all():
            tables, self.kept = row_tables(self.layout, k.device), None
        else:
            tables = kept_row_tables(self.layout, keep)
            self.kept = tables.count
        self.tables = _with_nothing(tables, step_size(self.layout))
        self.log_count = self.tables.log_count(wide(k[:0]).dtype)
        write_pyramid(k, self.layout, self.keys, self.kept)
        write_pyramid(v, self.layout, self.values, self.kept)
        if self.spread is not None:
            write_spread(k, self.layout, self.spread, self.kept)

    def schedule(self, levels: torch.Tensor) -> Schedule:
        """What the query blocks of some heads, `levels` int8 `[G, nq, nk]`, read of the key head that it holds."""
        return make_schedule(levels.flatten(0, 1), self.layout, self.kept)


def empty_pyramid(k: torch.Tensor, levels: torch.Tensor, block_n: int, pool_correction: str) -> Pyramid:
    """Room for a key head of `k [B, Hkv, Nk, D]`, with all that `levels` name."""
    layout = pyramid_layout(k.shape[2], block_n, coarsest=int(levels.max()) if levels.numel() else 0)
    more = step_size(layout)
    keys, values = k.new_empty(2, layout.rows + more, k.shape[3])
    keys[layout.rows :], values[layout.rows :] = 0.0, 0.0
    spread = wide(k[:0]).new_empty(layout.rows + more) if pool_correction == "isotropic" else None
    tables = _with_nothing(row_tables(layout, k.device), more)
    return Pyramid(keys, values, spread, layout, tables, tables.log_count(wide(k[:0]).dtype))


def _with_nothing(tables: RowTables, step: int) -> RowTables:
    return RowTables(F.pad(tables.count, (0, step)), F.pad(tables.last_token, (0, step), value=-1))
