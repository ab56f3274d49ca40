"""A Hilbert-like curve through any box of tokens, every step between direct neighbours.

The scheme is that of the generalised Hilbert curve (Jakub Červený, "gilbert"): walk a box from one corner to the next
corner along its first edge by cutting it into two, three or five boxes that are walked the same way. Two things differ.

*No diagonal steps.* A walk over `a·b·c` tokens that ends `a - 1` steps along the first edge exists only if `a` is even
or all three edges are odd: each step flips the parity of the coordinates' sum. Where the published rules leave that
condition they step diagonally. Here every cut keeps it, so every step has length 1, on every grid:

* the whole grid starts as one box whose first edge is even if the grid has an even edge, and else all are odd, or as
  two boxes with an even first edge each;
* two boxes: the cut of `a` is at an even length, so both parts have an even first edge, or are all odd if the whole is;
* three boxes: the outer ones have the even part of `b` as their first edge, the middle one keeps `a` and, if all
  edges are odd, gets the odd part of `b`;
* five boxes, for even `a` only: first edges are the even part of `b` (twice), `a`, and `c` (twice). `c` is even if
  either of `b` and `c` is; if both are odd then `a` is cut into odd parts, so the two boxes along `c` are all odd.

*No recursion.* A box knows the position of its first token on the curve, so boxes need no order among themselves and
all boxes of a depth are cut at once, as columns of one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of a tensor of boxes: position of the first token on the curve, its raster index, then the (length, stride) of
# the edges a, b, c, where a stride is the signed step in raster index. A walk starts at the first token and ends at
# the far end of a.
_SWAP_B_AND_C = [0, 1, 2, 3, 6, 7, 4, 5]


class _Edge(NamedTuple):
    """Edges of `n` boxes: int64 `[n]` each."""

    length: Tensor
    stride: Tensor

    @property
    def span(self) -> Tensor:
        """From the edge's first token to the one after its last."""
        return self.length * self.stride

    @property
    def last(self) -> Tensor:
        """From the edge's first token to its last."""
        return self.span - self.stride

    def reversed(self) -> _Edge:
        return _Edge(self.length, -self.stride)

    def cut(self, at: Tensor) -> tuple[_Edge, _Edge]:
        return _Edge(at, self.stride), _Edge(self.length - at, self.stride)


# Of each box, the first token of one part relative to its own, and that part's edges.
_Part = tuple[Tensor, _Edge, _Edge, _Edge]


def gilbert_order(grid: tuple[int, int, int]) -> Tensor:
    """Order of a grid's tokens along the curve.

    Args:
        grid: tokens along (t, h, w), each at least 1.

    Returns:
        int64 `[t * h * w]` on the CPU: raster index (t-major, then h, then w) of the token at each position.
        Consecutive tokens differ by one in exactly one coordinate.
    """
    boxes = _whole(grid)
    lines = []
    while boxes.shape[1]:
        is_line = (boxes[4] == 1) & (boxes[6] == 1)
        lines.append(boxes[:4, is_line])
        boxes = _cut(boxes[:, ~is_line])
    return _walk_lines(torch.cat(lines, dim=1))


def _whole(grid: tuple[int, int, int]) -> Tensor:
    """The grid as the first boxes: one, or two where its only even edges are much shorter than an odd one."""
    _, h, w = grid
    edges = zip(grid, (h * w, w, 1), strict=True)
    a, b, c = sorted(edges, key=lambda edge: (edge[0] % 2, -edge[0]))
    (length, stride), other = max(b, c), min(b, c)
    if 2 * a[0] >= length:
        boxes = [[0, 0, *a, *b, *c]]
    else:
        # From end to end of so short an edge the walk would run up the long one and back, always thin: walk along the
        # long one instead, all of it but a last odd layer.
        even = length - 1
        boxes = [[0, 0, even, stride, *a, *other], [even * a[0] * other[0], even * stride, *a, *other, 1, stride]]
    return torch.tensor(boxes, dtype=torch.int64, device="cpu").T


def _cut(boxes: Tensor) -> Tensor:
    """Cut every box once, the number of parts chosen so that they come near to cubes."""
    boxes = _swap_b_and_c(boxes, boxes[4] < boxes[6])
    a, b, c = boxes[2], boxes[4], boxes[6]
    is_long = 2 * a > 3 * b
    is_flat = 3 * b > 4 * c
    is_all_odd = (a % 2 == 1) & (b % 2 == 1) & (c % 2 == 1)
    in_three = ~is_long & (is_flat | is_all_odd)
    in_five = ~is_long & ~in_three
    even_c = _swap_b_and_c(boxes, (c % 2 == 1) & (b % 2 == 0))
    parts = [
        *_number(boxes[:, is_long], _in_two),
        *_number(boxes[:, in_three], _in_three),
        *_number(even_c[:, in_five], _in_five),
    ]
    return torch.cat(parts, dim=1)


def _swap_b_and_c(boxes: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, boxes[_SWAP_B_AND_C], boxes)


def _number(boxes: Tensor, cut: Callable[[_Edge, _Edge, _Edge], list[_Part]]) -> list[Tensor]:
    """Cut `boxes` and give each part its first token and its position on the curve."""
    position, first, *edges = boxes
    a, b, c = (_Edge(length, stride) for length, stride in zip(edges[::2], edges[1::2], strict=True))
    parts = []
    for offset, *(x, y, z) in cut(a, b, c):
        parts.append(torch.stack([position, first + offset, *x, *y, *z]))
        position = position + x.length * y.length * z.length
    return parts


def _in_two(a: _Edge, b: _Edge, c: _Edge) -> list[_Part]:
    near, far = a.cut(_middle(a.length))
    return [(torch.zeros_like(near.span), near, b, c), (near.span, far, b, c)]


def _in_three(a: _Edge, b: _Edge, c: _Edge) -> list[_Part]:
    """Up the near half of `b`, along `a` through its far half, and back down."""
    a_near, a_far = a.cut(_middle(a.length))
    b_near, b_far = b.cut(_middle(b.length))
    return [
        (torch.zeros_like(a.span), b_near, c, a_near),
        (b_near.span, a, b_far, c),
        (a.last + b_near.last, b_near.reversed(), c, a_far.reversed()),
    ]


def _in_five(a: _Edge, b: _Edge, c: _Edge) -> list[_Part]:
    """Up the near half of `b`, out along `c`, along `a` through the far half of `c`, back along `c`, and down."""
    a_near, a_far = a.cut(_middle(a.length, parity=c.length % 2))
    b_near, b_far = b.cut(_middle(b.length))
    c_near, c_far = c.cut(_middle(c.length))
    return [
        (torch.zeros_like(a.span), b_near, c_near, a_near),
        (b_near.span, c, a_near, b_far),
        (b_near.last + c.last, a, b_near.reversed(), c_far.reversed()),
        (a.last + b_near.span + c.last, c.reversed(), a_far.reversed(), b_far),
        (a.last + b_near.last, b_near.reversed(), c_near, a_far.reversed()),
    ]


def _middle(length: Tensor, parity: Tensor | int = 0) -> Tensor:
    """Where to cut an edge in about half so that the first part has `parity`; an edge of two is cut into ones."""
    half = length // 2
    return torch.where((half % 2 != parity) & (length > 2), half + 1, half)


def _walk_lines(lines: Tensor) -> Tensor:
    """Raster indices along the curve of boxes that are one token thick: `[4, n]`, their first four rows."""
    position, first, length, stride = lines[:, lines[0].argsort()]
    step = torch.arange(int(length.sum()), device="cpu") - position.repeat_interleave(length)
    return first.repeat_interleave(length) + step * stride.repeat_interleave(length)
