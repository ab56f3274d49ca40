"""How far the keys of a group lie from their mean: what pooling hides, and the pooled-logit correction needs."""

from __future__ import annotations

import torch

from psa_triton.pyramid.layout import PyramidLayout, short_groups, token_chunks

SPREAD_LEVELS = (2, 4, 8)
"""Levels whose rows have a spread; that of all others counts as 0."""


def write_spread(
    keys: torch.Tensor, layout: PyramidLayout, out: torch.Tensor, count: torch.Tensor | None = None
) -> None:
    """Write the spread of every row: `sum(|k - mean(k)| ** 2) / (count * D)` over the true tokens of its group.

    Two halves of a group are merged by `S = S_a + S_b + |mean_a - mean_b| ** 2 * c_a * c_b / (c_a + c_b)`, `S` the sum
    of squared distances from the mean: nothing of the size of the mean itself is ever squared, and no sum is negative.

    Args:
        keys: `[..., Nk, D]`, any strides.
        layout: of `Nk` tokens.
        out: `[..., P]`, float32 (float64 for float64); 0 at levels without a spread, and on padding.
        count: see `write_pyramid`.
    """
    out.zero_()
    if count is not None:
        _write_kept(keys, layout, out, count)
        return
    dim = keys.shape[-1]
    for start, total in token_chunks(keys, layout):
        squares = total.new_zeros(total.shape[:-1])
        for level in SPREAD_LEVELS:
            even, odd = total[..., 0::2, :], total[..., 1::2, :]
            squares = squares[..., 0::2] + squares[..., 1::2] + (even - odd).square().sum(-1) / level
            total = even + odd
            row = layout.first_row(level) + start // level
            out[..., row : row + squares.shape[-1]] = squares / (level * dim)
    # Into groups cut by the end of the sequence, padding went as keys of zeros.
    for row, tokens in short_groups(keys, layout):
        if row < layout.first_row(2 * SPREAD_LEVELS[-1]):
            out[..., row] = tokens.var(-2, correction=0).mean(-1)


def _write_kept(keys: torch.Tensor, layout: PyramidLayout, out: torch.Tensor, count: torch.Tensor) -> None:
    for start, mean in token_chunks(keys, layout, count):
        squares = mean.new_zeros(mean.shape[:-1])
        weight = count[start : start + mean.shape[-2]].to(mean.dtype)
        for level in SPREAD_LEVELS:
            both = weight[0::2] + weight[1::2]
            share = weight[1::2] / both.clamp(min=1)
            apart = mean[..., 1::2, :] - mean[..., 0::2, :]
            squares = squares[..., 0::2] + squares[..., 1::2] + apart.square().sum(-1) * weight[0::2] * share
            mean = mean[..., 0::2, :] + apart * share[:, None]
            weight = both
            row = layout.first_row(level) + start // level
            out[..., row : row + len(both)] = squares / (both.clamp(min=1) * keys.shape[-1])
