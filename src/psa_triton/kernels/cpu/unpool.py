"""Gradient of the pyramid's rows -> gradient of the tokens that they are means of."""

from __future__ import annotations

import torch

from psa_triton.pyramid import PyramidLayout


def unpool_gradient(rows: torch.Tensor, layout: PyramidLayout) -> torch.Tensor:
    """The adjoint of `write_pyramid`: every token gets its share, 1 / count, of each group that it was averaged in.

    Args:
        rows: gradient of the rows `[P, D]`, contiguous; overwritten.
        layout: of the pyramid.

    Returns:
        Gradient of the tokens `[Nk, D]`, a view of `rows`.
    """
    coarser: torch.Tensor | None = None
    for level in reversed(layout.levels):
        first = layout.first_row(level)
        share = rows[first : first + layout.blocks * layout.block_n // level].mul_(1 / level)
        group, count = divmod(layout.tokens, level)
        if count:  # the group that the end of the sequence cuts
            share[group] *= level / count
        if coarser is not None:
            share.view(len(coarser), 2, -1).add_(coarser[:, None])
        coarser = share
    return share[: layout.tokens]
