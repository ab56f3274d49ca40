"""Context parallelism: a process holds a share of the tokens, and inside attention a share of the heads (Ulysses).

diffusers splits and joins tokens around the blocks (`enable_parallelism` with a `ContextParallelConfig`). Sparse
attention needs whole sequences, since it chooses key blocks among all of them, so that tokens are exchanged for heads
before it and back after it. Shares are those of `Tensor.tensor_split`: any number of tokens or heads may be shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

HEADS, TOKENS = -3, -2
"""Dimensions of `[..., H, N, D]`."""


@dataclass(frozen=True)
class HeadParallel:
    """Exchanges tokens for heads between the processes of a group; every process must make the same calls.

    Gradients flow through `to_heads` and `to_tokens`.
    """

    group: dist.ProcessGroup

    def share(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This process's part of `x` along `dim`."""
        return x.tensor_split(self.group.size(), dim=dim)[self.group.rank()]

    def join(self, x: torch.Tensor, dim: int, total: int) -> torch.Tensor:
        """The whole, `total` long along `dim`, of which each process passes its share."""
        return self._exchange([x] * self.group.size(), dim, total)

    def to_heads(self, x: torch.Tensor, tokens: int, prefix: int = 0) -> torch.Tensor:
        """All tokens of this process's heads.

        Args:
            x: `[..., H, prefix + n, D]`: all heads of the prefix and of this process's share of the other tokens.
            tokens: number of the other tokens in all processes.
            prefix: tokens at the start that every process holds.

        Returns:
            `[..., h, prefix + tokens, D]`.
        """
        shared = self._exchange(x[..., prefix:, :].tensor_split(self.group.size(), dim=HEADS), TOKENS, tokens)
        return shared if prefix == 0 else torch.cat([self.share(x[..., :prefix, :], HEADS), shared], dim=TOKENS)

    def to_tokens(self, x: torch.Tensor, heads: int, prefix: int = 0) -> torch.Tensor:
        """The inverse of `to_heads`: all heads of the prefix and of this process's share of the other tokens."""
        pieces = x[..., prefix:, :].tensor_split(self.group.size(), dim=TOKENS)
        shared = self._exchange(pieces, HEADS, heads)
        return shared if prefix == 0 else torch.cat([self.join(x[..., :prefix, :], HEADS, heads), shared], dim=TOKENS)

    def _exchange(self, pieces: Sequence[torch.Tensor], dim: int, total: int) -> torch.Tensor:
        """Piece `i` goes to process `i`; what comes is joined along `dim`, of which each process had its share."""
        # Some builds of torch come without it.
        from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor

        mine = pieces[self.group.rank()]
        whole, rest = divmod(total, self.group.size())
        shapes = [list(mine.shape) for _ in pieces]
        for rank, shape in enumerate(shapes):
            shape[dim] = whole + (rank < rest)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        sent = torch.cat([piece.flatten() for piece in pieces])
        received = wait_tensor(
            all_to_all_single_autograd(sent, sizes, [piece.numel() for piece in pieces], group=self.group)
        )
        return torch.cat([x.view(shape) for x, shape in zip(received.split(sizes), shapes, strict=True)], dim=dim)


def head_parallel(transformer: Any) -> HeadParallel | None:
    """How `transformer` shares its tokens between processes; None if it does not.

    Raises:
        ValueError: if context parallelism is asked for in a form that sparse attention cannot take part in.
    """
    # diffusers has public ways to set the configuration and its mesh, but none to read them.
    config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        return None
    if config.ring_degree > 1:
        raise ValueError(
            f"ContextParallelConfig: PSA chooses among all key blocks, so it shares heads and not keys; expected "
            f"ring_degree=1, got {config.ring_degree}; use ulysses_degree"
        )
    heads = transformer.config.num_attention_heads
    if config.ulysses_degree > heads:
        raise ValueError(
            f"ContextParallelConfig: expected ulysses_degree of at most {heads}, the attention heads, "
            f"got {config.ulysses_degree}"
        )
    return HeadParallel(config._ulysses_mesh.get_group())
