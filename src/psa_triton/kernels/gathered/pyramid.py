"""Key heads at every resolution, as many at once as fit beside what is computed with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import torch
from torch.nn import functional as F

from psa_triton.blocks import Blocks
from psa_triton.kernels.gathered.schedule import Schedule, make_schedule, step_size
from psa_triton.kernels.gathered.scratch import Scratch
from psa_triton.kernels.int8 import rounded
from psa_triton.kernels.mean_key import mean_key
from psa_triton.kernels.reading import Reading
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
_SUMMED_AT_ONCE: Final = 4096
"""Keys of each head in their mean."""


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
    mean_key: torch.Tensor | None
    """`[H, 1, D]`, taken away from the keys in bfloat16; else None."""

    @cached_property
    def nothing(self) -> int:
        """A step of nothing."""
        return self.layout.rows // step_size(self.layout)

    @cached_property
    def steps(self) -> int:
        """Of all heads together."""
        return len(self.log_count) * (self.nothing + 1)

    def less_mean(self, k: torch.Tensor) -> torch.Tensor:
        """Keys `[H, Nk, D]` as they went into the rows."""
        return k if self.mean_key is None else k - self.mean_key

    def schedule(self, levels: torch.Tensor) -> Schedule:
        """What the query blocks of the heads that read this, `levels` int8 `[Hq, nq, nk]`, read of it."""
        of_each = levels.reshape(len(self.keys), -1, levels.shape[-1])
        return make_schedule(of_each, self.layout, self.kept, stride=self.nothing + 1)


def pyramids(
    k: torch.Tensor, v: torch.Tensor, levels: torch.Tensor, blocks: Blocks, reading: Reading, scratch: Scratch
) -> Iterator[tuple[int, slice, slice, Pyramid]]:
    """Pyramids of `k` and `v [B, Hkv, Nk, D]` with all that `levels [B, Hq, nq, nk]` name, one after another.

    With each the item of the batch, its key heads, and the query heads that read them. All are in the same memory.
    """
    layout = pyramid_layout(k.shape[2], blocks.n, coarsest=min(int(levels.max()), reading.coarsest))
    group = levels.shape[1] // k.shape[1]
    count = max(1, _AT_ONCE // (2 * layout.rows * k.shape[3] * k.element_size()))
    for item in range(len(k)):
        keep = None if blocks.key_mask is None else blocks.key_mask[item]
        for first in range(0, k.shape[1], count):
            stop = min(first + count, k.shape[1])
            of_keys, of_queries = slice(first, stop), slice(first * group, stop * group)
            pyramid = _build(k[item, of_keys], v[item, of_keys], layout, reading, keep, scratch)
            yield item, of_keys, of_queries, pyramid


def _build(
    k: torch.Tensor,
    v: torch.Tensor,
    layout: PyramidLayout,
    reading: Reading,
    keep: torch.Tensor | None,
    scratch: Scratch,
) -> Pyramid:
    """Of keys and values `[H, Nk, D]`; `keep`, bool `[Nk]`, says which tokens are there; None if all are."""
    heads, more = len(k), step_size(layout)
    mean = None
    if k.dtype == torch.bfloat16 and reading.qk_dtype != "int8":  # for int8 it is gone already
        mean = mean_key(k[None], None if keep is None else keep[None], _SUMMED_AT_ONCE)[0]
    if keep is None or keep.all():
        log_count, last_token = _whole_tables(layout, heads, wide(k[:0]).dtype, k.device)
        kept = None
    else:
        tables = kept_row_tables(layout, keep)
        log_count, last_token = _with_nothing(tables, layout, heads, wide(k[:0]).dtype)
        kept = tables.count
    keys, values = scratch.take("pyramid", (2, heads, layout.rows + more, k.shape[2]), k.dtype, k.device)
    for rows, x, less in ((keys, k, mean), (values, v, None)):
        rows[:, layout.rows :] = 0.0
        write_pyramid(x, layout, rows, kept, less=less)
    if reading.qk_dtype == "int8":
        keys.copy_(rounded(keys))
    spread = None
    if reading.pool_correction == "isotropic":
        spread = wide(k[:0]).new_empty(heads, layout.rows + more)
        write_spread(k, layout, spread, kept)
    return Pyramid(keys, values, spread, layout, log_count, last_token, kept, mean)


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
