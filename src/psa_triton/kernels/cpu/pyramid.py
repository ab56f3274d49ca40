"""One key head at every resolution, in memory that all key heads use one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
from psa_triton.schedule import Schedule, make_schedule


@dataclass
class Pyramid:
    """One key head's rows, keys and values `[P, D]`, and what is known of them."""

    keys: torch.Tensor
    values: torch.Tensor
    spread: torch.Tensor | None
    """`[P]`, float32 (float64 for float64), where logits are corrected by it; see `pyramid.spread`."""
    layout: PyramidLayout
    tables: RowTables
    """Of the key head that it holds."""
    kept: torch.Tensor | None = None
    """int64 `[P]`, `tables.count` where a key mask leaves tokens of this head out; else None."""

    def hold(self, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Write the rows of one key head, `k` and `v` `[Nk, D]`; `keep`, bool `[Nk]`, says which tokens are there."""
        if keep is None or keep.all():
            self.tables, self.kept = row_tables(self.layout, k.device), None
        else:
            self.tables = kept_row_tables(self.layout, keep)
            self.kept = self.tables.count
        write_pyramid(k, self.layout, self.keys, self.kept)
        write_pyramid(v, self.layout, self.values, self.kept)
        if self.spread is not None:
            write_spread(k, self.layout, self.spread, self.kept)

    def schedule(self, levels: torch.Tensor) -> Schedule:
        """What the query blocks of one head, `levels` int8 `[nq, nk]`, read of the key head that it holds."""
        return make_schedule(levels, self.layout, self.kept)


def empty_pyramid(k: torch.Tensor, levels: torch.Tensor, block_n: int, pool_correction: str) -> Pyramid:
    """Room for a key head of `k [B, Hkv, Nk, D]`, with all that `levels` name."""
    layout = pyramid_layout(k.shape[2], block_n, coarsest=int(levels.max()) if levels.numel() else 0)
    keys, values = k.new_empty(2, layout.rows, k.shape[3])
    spread = wide(k).new_empty(layout.rows) if pool_correction == "isotropic" else None
    return Pyramid(keys, values, spread, layout, row_tables(layout, k.device))
