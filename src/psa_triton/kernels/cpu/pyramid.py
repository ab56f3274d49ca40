"""One key head at every resolution, in memory that all key heads use one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psa_triton.products import wide
from psa_triton.pyramid import PyramidLayout, RowTables, pyramid_layout, row_tables, write_pyramid, write_spread


@dataclass(frozen=True)
class Pyramid:
    """One key head's rows, keys and values `[P, D]`, and what is known of them."""

    keys: torch.Tensor
    values: torch.Tensor
    spread: torch.Tensor | None
    """`[P]`, float32 (float64 for float64), where logits are corrected by it; see `pyramid.spread`."""
    layout: PyramidLayout
    tables: RowTables

    def hold(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write the rows of one key head, `k` and `v` `[Nk, D]`."""
        write_pyramid(k, self.layout, self.keys)
        write_pyramid(v, self.layout, self.values)
        if self.spread is not None:
            write_spread(k, self.layout, self.spread)


def empty_pyramid(k: torch.Tensor, levels: torch.Tensor, block_n: int, pool_correction: str) -> Pyramid:
    """Room for a key head of `k [B, Hkv, Nk, D]`, with all that `levels` name."""
    layout = pyramid_layout(k.shape[2], block_n, coarsest=int(levels.max()) if levels.numel() else 0)
    keys, values = k.new_empty(2, layout.rows, k.shape[3])
    spread = wide(k).new_empty(layout.rows) if pool_correction == "isotropic" else None
    return Pyramid(keys, values, spread, layout, row_tables(layout, k.device))
