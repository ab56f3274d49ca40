"""A token order that can be applied and undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """A permutation of tokens, one for all heads or one for each."""

    permutation: Tensor
    """int64 `[N]` or `[B, H, N]`: the token that each position takes."""
    inverse: Tensor
    """int64, same shape: the position that each token goes to."""

    @classmethod
    def from_permutation(cls, permutation: Tensor) -> Self:
        """An order from its permutation alone: each of 0 to N - 1 once along the last dimension."""
        return cls(permutation, permutation.argsort(dim=-1))

    @property
    def tokens(self) -> int:
        """Tokens that the order permutes, N."""
        return self.permutation.shape[-1]

    def with_prefix(self, tokens: int) -> TokenOrder:
        """The order of a sequence that has `tokens` more tokens at its start, which stay where they are."""
        if tokens == 0:
            return self
        prefix = torch.arange(tokens, device=self.permutation.device).expand(*self.permutation.shape[:-1], tokens)
        return TokenOrder(
            torch.cat([prefix, self.permutation + tokens], dim=-1), torch.cat([prefix, self.inverse + tokens], dim=-1)
        )

    def after(self, first: TokenOrder) -> TokenOrder:
        """The order of tokens that are put in the order `first`, the same for all heads, and then in this one."""
        return TokenOrder(first.permutation[self.permutation], self.inverse[..., first.inverse])

    def apply(self, x: Tensor, dim: int = -2) -> Tensor:
        """Put the tokens of `x` in this order.

        Args:
            x: any dtype, N tokens along `dim`; `[B, H, ...]` with `dim` after the first two if the order is per head.
            dim: the dimension of the tokens.

        Returns:
            A new tensor of the same shape; gradients flow through it.

        Raises:
            ValueError: `x` has another number of tokens.
        """
        return _take(x, self.permutation, dim)

    def apply_mask(self, keep: Tensor | None) -> Tensor | None:
        """A mask of tokens `[B, N]` in this order, the same for all heads: clusters put what it leaves out last."""
        if keep is None:
            return None
        of_items = self.permutation.expand_as(keep) if self.permutation.ndim == 1 else self.permutation[:, 0]
        return keep.gather(-1, of_items)

    def restore(self, x: Tensor, dim: int = -2) -> Tensor:
        """Undo `apply`: the same arguments, result and errors."""
        return _take(x, self.inverse, dim)


def _take(x: Tensor, index: Tensor, dim: int) -> Tensor:
    dim %= x.ndim
    if x.shape[dim] != index.shape[-1]:  # fewer would be left out without a word
        raise ValueError(
            f"x: expected {index.shape[-1]} tokens along dimension {dim}, got {x.shape[dim]} (shape {list(x.shape)})"
        )
    if index.ndim == 1:
        return x.index_select(dim, index)
    shape = [*index.shape[:2], *(1 for _ in x.shape[2:])]
    shape[dim] = index.shape[-1]
    return x.gather(dim, index.view(shape).expand_as(x))
