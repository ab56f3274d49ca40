"""Gradient of the pyramid's rows -> gradient of the tokens that they are means of."""

from __future__ import annotations

import torch

from psa_triton.kernels.gathered.pyramid import Pyramid
from psa_triton.pyramid import SPREAD_LEVELS, PyramidLayout


def unpool_gradient(rows: torch.Tensor, layout: PyramidLayout, kept: torch.Tensor | None = None) -> torch.Tensor:
    """The adjoint of `write_pyramid`: every token gets its share, 1 / count, of each group that it was averaged in.

    Args:
        rows: gradient of the rows `[..., P + S, D]`, contiguous; overwritten.
        layout: of the pyramid.
        kept: int64 `[P]`, `Pyramid.kept`: tokens that a key mask leaves out get zeros.

    Returns:
        Gradient of the tokens `[..., Nk, D]`, a view of `rows`.
    """
    coarser: torch.Tensor | None = None
    for level in reversed(layout.levels):
        first = layout.first_row(level)
        end = first + layout.blocks * layout.block_n // level
        share = rows[..., first:end, :]
        group, count = divmod(layout.tokens, level)
        if kept is not None:
            share.div_(kept[first:end, None].clamp(min=1))
        else:
            share.mul_(1 / level)
            if count:  # the group that the end of the sequence cuts
                share[..., group, :] *= level / count
        if coarser is not None:
            share.unflatten(-2, (-1, 2)).add_(coarser[..., None, :])
        coarser = share
    if kept is not None:
        share.masked_fill_(kept[:end, None] == 0, 0.0)
    return share[..., : layout.tokens, :]


def unpool_key_gradient(
    rows: torch.Tensor, spread: torch.Tensor | None, k: torch.Tensor, pyramid: Pyramid
) -> torch.Tensor:
    """The adjoint of `write_pyramid` and `write_spread` together.

    A key moves the spread of its group by `2 / (count * D) * (k - mean)`: the part of the mean is one more gradient of
    the row, the part of the key is the key times its share of `2 / D`.

    Args:
        rows: gradient of the rows of keys `[H, P + S, D]`, contiguous; overwritten.
        spread: gradient of their spread `[H, P + S]`; overwritten. None if nothing depends on it.
        k: the keys `[H, Nk, D]`.
        pyramid: which holds them.

    Returns:
        Gradient of the keys `[H, Nk, D]`, a view of `rows`.
    """
    layout = pyramid.layout
    kept = pyramid.kept
    if spread is None:
        return unpool_gradient(rows, layout, kept)
    spread[:, : layout.first_row(SPREAD_LEVELS[0])] = 0.0
    spread[:, layout.first_row(2 * SPREAD_LEVELS[-1]) :] = 0.0
    share = spread.mul_(2 / k.shape[2])[..., None]
    rows -= _scaled(pyramid.keys, share)
    return unpool_gradient(rows, layout, kept).add_(_scaled(pyramid.less_mean(k), unpool_gradient(share, layout, kept)))


def _scaled(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`x * factor`, 0 where the factor is, even of what is not finite: nothing read it."""
    return (x * factor).masked_fill_(factor == 0.0, 0.0)
