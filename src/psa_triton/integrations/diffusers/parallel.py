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
class Stream:
    """Tokens that stand together in a sequence."""

    total: int
    """In all processes."""
    shared: bool
    """Whether each process holds a share of them, or each holds all."""


@dataclass(frozen=True)
class HeadParallel:
    """Exchanges tokens for heads between the processes of a group; every process must make the same calls.

    Gradients flow through `to_heads` and `to_tokens`.
    """

    group: dist.ProcessGroup

    def length(self, total: int, rank: int | None = None) -> int:
        """Tokens that a process, this one by default, holds of `total` shared ones."""
        whole, rest = divmod(total, self.group.size())
        return whole + ((self.group.rank() if rank is None else rank) < rest)

    def _lengths(self, streams: Sequence[Stream]) -> list[int]:
        return [self.length(stream.total) if stream.shared else stream.total for stream in streams]

    def to_heads(self, x: torch.Tensor, streams: Sequence[Stream]) -> torch.Tensor:
        """All tokens of this process's heads.

        Args:
            x: `[..., H, n, D]`: all heads of what this process holds of the streams.
            streams: that make the sequence, one after the other.

        Returns:
            `[..., h, N, D]`.
        """
        parts = zip(x.split(self._lengths(streams), dim=TOKENS), streams, strict=True)
        return torch.cat([self._to_heads(part, stream) for part, stream in parts], dim=TOKENS)

    def _to_heads(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        if not stream.shared:
            return x.tensor_split(self.group.size(), dim=HEADS)[self.group.rank()]
        return self._exchange(x.tensor_split(self.group.size(), dim=HEADS), TOKENS, stream.total)

    def to_tokens(self, x: torch.Tensor, heads: int, streams: Sequence[Stream]) -> torch.Tensor:
        """The inverse of `to_heads`: all `heads` of what this process holds of the streams."""
        parts = zip(x.split([stream.total for stream in streams], dim=TOKENS), streams, strict=True)
        return torch.cat([self._to_tokens(part, heads, stream) for part, stream in parts], dim=TOKENS)

    def _to_tokens(self, x: torch.Tensor, heads: int, stream: Stream) -> torch.Tensor:
        size = self.group.size()
        return self._exchange(x.tensor_split(size, dim=TOKENS) if stream.shared else [x] * size, HEADS, heads)

    def to_whole_mask(self, mask: torch.Tensor, streams: Sequence[Stream]) -> torch.Tensor:
        """A mask for the keys of the streams, from one for those that this process holds.

        Args:
            mask: bool or to be added, `[B, 1, 1, n]`.
            streams: that make the sequence, one after the other.

        Returns:
            `[B, 1, 1, N]`, of the same dtype.

        Raises:
            ValueError: it is no mask of keys alone.
        """
        lengths = self._lengths(streams)
        if mask.ndim != 4 or mask.shape[1:] != (1, 1, sum(lengths)):
            raise ValueError(
                f"attention_mask: expected [B, 1, 1, {sum(lengths)}] where tokens are shared between processes, the "
                f"padding among the keys that this one holds, got {list(mask.shape)}"
            )
        values = mask.to(torch.uint8) if mask.dtype == torch.bool else mask
        return self.to_heads(values.mT.expand(-1, self.group.size(), -1, -1), streams).mT.to(mask.dtype)

    def _exchange(self, pieces: Sequence[torch.Tensor], dim: int, total: int) -> torch.Tensor:
        """Piece `i` goes to process `i`; what comes is joined along `dim`, of which each process had its share."""
        # Some builds of torch come without it.
        from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor

        mine = pieces[self.group.rank()]
        shapes = [list(mine.shape) for _ in pieces]
        for rank, shape in enumerate(shapes):
            shape[dim] = self.length(total, rank)
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
    heads = transformer.config.get("num_attention_heads")
    if heads is not None and config.ulysses_degree > heads:
        raise ValueError(
            f"ContextParallelConfig: expected ulysses_degree of at most {heads}, the attention heads, "
            f"got {config.ulysses_degree}"
        )
    return HeadParallel(config._ulysses_mesh.get_group())


def cogvideox_context_parallel_plan() -> dict[str, Any]:
    """How to split tokens between processes, as the `cp_plan` of `CogVideoXTransformer3DModel.enable_parallelism`.

    diffusers has no plan of its own for this class, and its attention processors would attend within each share: a
    transformer with this plan is right while PSA is attached, be it with a dense preset, and not without.
    """
    # Public by their use as `cp_plan`, but exported nowhere else; and older releases of diffusers do not have them.
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    tables = ContextParallelInput(split_dim=0, expected_dims=2)
    return {
        "": {"image_rotary_emb": [tables, tables]},
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
