"""The causal frontier inside a part: which of its rows are hidden from which queries of a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psa_triton.products import matmul


@dataclass(frozen=True)
class Frontier:
    """Every query sees the rows before the cut; those behind it need a mask.

    Lists are in the order of blocks, so the rows of the frontier stand together: a mask of a slice costs little, where
    one of rows picked out costs as much as the softmax.
    """

    cut: slice
    """The last C of a part's L rows."""
    hidden: torch.Tensor
    """bool `[m, C]`: which queries do not see them."""

    def seen(self, length: int) -> torch.Tensor:
        """Bool `[m, length]`: which queries see which rows of the part."""
        seen = self.hidden.new_ones(len(self.hidden), length)
        seen[:, self.cut] = ~self.hidden
        return seen


def find_frontier(last_token: torch.Tensor, limit: torch.Tensor) -> Frontier:
    """The frontier of a part whose rows end at `last_token [L]` for queries that see up to `limit [m]` (ascending)."""
    hidden_rows = last_token > limit[0]
    first = int(hidden_rows.int().argmax()) if hidden_rows.any() else len(last_token)
    cut = slice(first, None)
    return Frontier(cut, last_token[cut] > limit[:, None])


def matmul_of_seen(weights: torch.Tensor, x: torch.Tensor, frontier: Frontier, *, by_row: bool = False) -> torch.Tensor:
    """`weights @ x`, where what is not finite in `x` does not reach through a weight that the mask made 0.

    Plainly multiplied it would, since 0 * nan is nan.

    Args:
        weights: `[m, L]`, queries by rows of the part; `[L, m]` if `by_row`.
        x: one row a column of `weights`.
        frontier: of the part.
        by_row: which of the two it is.
    """
    if x.sum().isfinite():
        return matmul(weights, x)
    bad = ~x.isfinite()
    seen = frontier.seen(weights.shape[0] if by_row else weights.shape[1])
    spoiled = (seen.T if by_row else seen).float() @ bad.float() > 0
    return matmul(weights, x.masked_fill(bad, 0.0)).masked_fill(spoiled, float("nan"))
