"""A token order that can be applied and undone, and the orders that a grid alone decides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from psa_triton.names import unknown_name
from psa_triton.ordering.checks import check_prefix, check_triple
from psa_triton.ordering.gilbert import gilbert_order
from psa_triton.ordering.tiles import tile_order

GridMethod = Literal["Gilbert", "STA"]


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """A permutation of tokens, one for all heads or one for each.

    Raises:
        TypeError: `permutation` or `inverse` is not int64.
        ValueError: their shapes are not both `[N]` or both `[B, H, N]`, or their devices differ.
    """

    permutation: Tensor
    """int64 `[N]` or `[B, H, N]`: the token that each position takes."""
    inverse: Tensor
    """int64, same shape: the position that each token goes to."""

    def __post_init__(self) -> None:
        for name, index in (("permutation", self.permutation), ("inverse", self.inverse)):
            if index.dtype != torch.int64:
                raise TypeError(f"{name}: expected dtype torch.int64, got {index.dtype}")
            if index.ndim not in (1, 3):
                raise ValueError(f"{name}: expected shape [N] or [B, H, N], got {list(index.shape)}")
        if self.permutation.shape != self.inverse.shape:
            raise ValueError(
                f"inverse: expected the shape of permutation, {list(self.permutation.shape)}, "
                f"got {list(self.inverse.shape)}"
            )
        if self.permutation.device != self.inverse.device:
            raise ValueError(
                f"inverse: expected the device of permutation, {self.permutation.device}, got {self.inverse.device}"
            )

    @classmethod
    def from_permutation(cls, permutation: Tensor) -> Self:
        """An order from its permutation alone.

        Args:
            permutation: int64 `[N]` or `[B, H, N]`, each of 0 to N - 1 once along the last dimension.

        Raises:
            TypeError: it is not int64.
            ValueError: it has another shape, or is no permutation.
        """
        order = cls(permutation, permutation.argsort(dim=-1))
        identity = torch.arange(order.tokens, device=permutation.device)
        if not torch.equal(permutation.sort(dim=-1).values, identity.expand_as(permutation)):
            raise ValueError(
                f"permutation: expected each of 0 to {order.tokens - 1} once, got repeated or other values"
            )
        return order

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

    def apply(self, x: Tensor, dim: int = -2) -> Tensor:
        """Put the tokens of `x` in this order.

        Args:
            x: any dtype, N tokens along `dim`; `[B, H, ...]` with `dim` after the first two if the order is per head.
            dim: the dimension of the tokens.

        Returns:
            A new tensor of the same shape; gradients flow through it.

        Raises:
            IndexError: `x` has no dimension `dim`.
            ValueError: `x` has another number of tokens, another batch or heads than a per-head order, or is on
                another device.
        """
        return _take(x, self.permutation, dim)

    def restore(self, x: Tensor, dim: int = -2) -> Tensor:
        """Undo `apply`: the same arguments, result and errors."""
        return _take(x, self.inverse, dim)


def _take(x: Tensor, index: Tensor, dim: int) -> Tensor:
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"dim: expected one of the {x.ndim} dimensions of x, got {dim}")
    dim %= x.ndim
    if x.device != index.device:
        raise ValueError(f"x: expected device {index.device}, where the order is, got {x.device}; move one of them")
    if x.shape[dim] != index.shape[-1]:
        raise ValueError(
            f"x: expected {index.shape[-1]} tokens along dimension {dim}, got {x.shape[dim]} (shape {list(x.shape)})"
        )
    if index.ndim == 1:
        return x.index_select(dim, index)
    if dim < 2 or x.shape[:2] != index.shape[:2]:
        raise ValueError(
            f"x: expected shape [{index.shape[0]}, {index.shape[1]}, ...] with the tokens after batch and heads, as "
            f"the order is per head, got {list(x.shape)} with the tokens along dimension {dim}"
        )
    shape = [*index.shape[:2], *(1 for _ in x.shape[2:])]
    shape[dim] = index.shape[-1]
    return x.gather(dim, index.view(shape).expand_as(x))


def grid_order(
    method: GridMethod,
    grid: tuple[int, int, int],
    *,
    tile_size: tuple[int, int, int] = (2, 8, 8),
    prefix_tokens: int = 0,
    device: torch.device | str = "cpu",
) -> TokenOrder:
    """The order of visual tokens that their grid alone decides. Cached: equal arguments give the same object.

    Args:
        method: `Gilbert`, along a space-filling curve, or `STA`, by 3D tiles.
        grid: visual tokens along (t, h, w), given in raster order: t-major, then h, then w.
        tile_size: STA only, tokens of a tile along (t, h, w).
        prefix_tokens: tokens before the visual ones; they keep their place.
        device: where the order is put.

    Returns:
        An order of `prefix_tokens + t * h * w` tokens, the same for all heads.

    Raises:
        TypeError: `grid`, `tile_size` or `prefix_tokens` is not of integers.
        ValueError: `method` is unknown, `grid` or `tile_size` is not three positive integers, or `prefix_tokens` is
            negative.
    """
    if method not in get_args(GridMethod):
        raise ValueError(
            f"method: {unknown_name('grid order', str(method), get_args(GridMethod))}; "
            "semantic_order makes those that depend on the data"
        )
    grid = check_triple("grid", grid)
    tiles = check_triple("tile_size", tile_size) if method == "STA" else None
    prefix_tokens = check_prefix(prefix_tokens)
    # A device without an index means the current one, which may differ at the next call.
    device = torch.empty(0, device=device).device
    if torch.compiler.is_compiling():
        return TokenOrder(*_traced_grid_order(method, grid, tiles or (), prefix_tokens, device))
    return _grid_order(method, grid, tiles, prefix_tokens, device)


@lru_cache(maxsize=32)
def _grid_order(
    method: GridMethod,
    grid: tuple[int, int, int],
    tile_size: tuple[int, int, int] | None,
    prefix_tokens: int,
    device: torch.device,
) -> TokenOrder:
    # A tensor made in inference mode could never be used under autograd, which a later caller may want.
    with torch.inference_mode(False):
        permutation = gilbert_order(grid) if tile_size is None else tile_order(grid, tile_size)
        order = TokenOrder.from_permutation(permutation).with_prefix(prefix_tokens)
        return TokenOrder(order.permutation.to(device), order.inverse.to(device))


@torch.library.custom_op("psa_triton::grid_order", mutates_args=())
def _traced_grid_order(
    method: str, grid: list[int], tile_size: list[int], prefix_tokens: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`_grid_order` as one operator of a graph, whose results are its own: the cached ones must not be written to."""
    t, h, w = grid
    order = _grid_order(method, (t, h, w), tuple(tile_size) or None, prefix_tokens, device)
    return order.permutation.clone(), order.inverse.clone()


@_traced_grid_order.register_fake
def _(method, grid, tile_size, prefix_tokens, device):
    t, h, w = grid
    shape = prefix_tokens + t * h * w
    return tuple(torch.empty(shape, dtype=torch.int64, device=device) for _ in range(2))
