"""What it costs the output to read a key block at each level; `docs/fidelity.md` derives it."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.blocks import Blocks
from psa_triton.impl import Impl
from psa_triton.levels.budget.ladder import ladder
from psa_triton.levels.budget.spread import group_spread

ALIGNMENT: Final = 0.25
"""Share of the values' spread inside a group that goes with the logits where these differ widely; measured."""
SHARPNESS: Final = 2.0
"""How soon they do: where logits have long tails, sooner than their variance alone would say; measured."""
UNKNOWN: Final = 1e12
"""Error of not reading a block that holds NaN or inf in full: dense attention would show them."""


def expected_errors(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, *, scale: float, impl: Impl) -> Tensor:
    """Squared error of the output per squared attention mass on a key block, at each level of the ladder.

    A group read as its mean misses how its values vary with its logits. With `within` the spread of the values inside
    the groups, and `variance = scale^2 * mean|q|^2 / D * (spread of the keys inside the groups)` that of the logits,

        error(level) = ALIGNMENT * (1 - exp(-SHARPNESS * variance)) * within

    A block that is not read misses its values altogether: their mean squared distance from the mean of all values,
    which stands for the output. The mass that pooling takes from a block is left out: nearly all of a row is pooled,
    and what all blocks lose cancels in the softmax.

    Args:
        q: `[B, Hq, Nq, D]`.
        k, v: `[B, Hkv, Nk, D]`.
        blocks: which they are. A key block that a mask leaves out has no errors.
        scale: of the logits.
        impl: `triton` (a GPU kernel) or any other (the same torch code).

    Returns:
        float32 `[B, Hq, nk, S + 1]` in the order of `ladder(blocks.n)`, finite; 0 at level 1.
    """
    spread = group_spread
    if impl == "triton":
        from psa_triton.levels.budget.spread_triton import group_spread as spread
    key_spread, _ = spread(k, blocks)
    value_spread, means = spread(v, blocks)
    kept = blocks.kept()
    is_there = None if kept is None else (kept > 0)[:, None, :, None]
    dropped = value_spread[..., -1:] + _distance_from_centre(means, is_there)
    # Spreads come finest first, and may end with that of 128 tokens, which is no level.
    pooled = len(ladder(blocks.n)) - 2
    key_spread, within = (x[..., :pooled].flip(-1) for x in (key_spread, value_spread))

    key_spread, within, dropped = (
        x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (key_spread, within, dropped)
    )
    variance = scale**2 * _mean_square(q)[..., None, None] * key_spread
    errors = torch.cat([dropped, -ALIGNMENT * torch.expm1(-SHARPNESS * variance) * within], dim=-1)
    errors = errors.nan_to_num_(nan=UNKNOWN).clamp_(0, UNKNOWN)
    return F.pad(errors if is_there is None else errors.masked_fill_(~is_there, 0), (0, 1))


def _distance_from_centre(means: Tensor, is_there: Tensor | None) -> Tensor:
    """Squared distance of each block's mean value from the mean of those that are finite: `[B, H, nk, 1]`.

    Blocks that are not there, where `is_there`, bool `[B, 1, nk, 1]`, tells some, do not count.
    """
    finite = means.isfinite().all(-1, keepdim=True)
    finite = finite if is_there is None else finite & is_there
    centre = means.masked_fill(~finite, 0).sum(-2, keepdim=True) / finite.sum(-2, keepdim=True).clamp(min=1)
    return (means - centre).square().sum(-1, keepdim=True)


def _mean_square(q: Tensor) -> Tensor:
    """Mean square of the finite queries' channels, float32 `[B, Hq]`."""
    # torch widens as it sums, but does not narrow.
    q = q.float() if q.dtype == torch.float64 else q
    squares = torch.linalg.vector_norm(q, dim=-1, dtype=torch.float32).square()
    finite = squares.isfinite()
    return squares.masked_fill(~finite, 0).sum(-1) / finite.sum(-1).clamp(min=1) / q.shape[-1]
