"""How queries and keys are cut into blocks, and which pairs of these masks leave visible, or are read in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from psa_triton.exempt import Ranges
from psa_triton.inputs import as_int
from psa_triton.kept import first_kept, kept_count, last_kept

SMALLEST_BLOCK = 8


def check_block_size(name: str, size: int) -> int:
    """`size`, the argument called `name`, as an int that is a power of two of at least 8 tokens.

    Raises:
        TypeError: it is no integer.
        ValueError: it is no power of two, or too small.
    """
    size = as_int(name, size)
    if size < SMALLEST_BLOCK or size & (size - 1):
        raise ValueError(f"{name}: expected a power of two of at least {SMALLEST_BLOCK} tokens, got {size}")
    return size


def block_count(tokens: int, size: int) -> int:
    """Number of blocks of `size` that `tokens` fill, the last one possibly in part."""
    return -(-tokens // size)


def block_lengths(tokens: int, size: int, device: torch.device) -> Tensor:
    """True tokens of each block, int64 `[block_count(tokens, size)]`: `size`, but for a ragged last block."""
    starts = torch.arange(0, tokens, size, device=device)
    return (tokens - starts).clamp(max=size)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Query blocks, key blocks, the masks between them, and the tokens that are exempt from any choice."""

    m: int
    """Tokens of a query block; the last may have fewer."""
    n: int
    """Tokens of a key block, likewise."""
    queries: int
    """Nq."""
    keys: int
    """Nk."""
    is_causal: bool = False
    """Whether query `i` sees key `j` only if `j <= i + shift`."""
    key_mask: Tensor | None = None
    """bool `[B, Nk]`, which keys are there; None if all are."""
    exempt_queries: Ranges = ()
    """Queries that read everything in full, as all of a block with one of them do."""
    exempt_keys: Ranges = ()
    """Keys that every query reads in full, likewise."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, m: int, n: int, *others: Any, **named: Any) -> Self:
        """The blocks of `q [B, Hq, Nq, D]` and `k [B, Hkv, Nk, D]`, and the other fields."""
        return cls(m, n, q.shape[2], k.shape[2], *others, **named)

    @property
    def rows(self) -> int:
        """Number of query blocks, nq."""
        return block_count(self.queries, self.m)

    @property
    def columns(self) -> int:
        """Number of key blocks, nk."""
        return block_count(self.keys, self.n)

    @property
    def shift(self) -> int:
        """Under the causal mask query `i` sees keys up to `i + shift`: the last query sees all."""
        return self.keys - self.queries

    def kept(self) -> Tensor | None:
        """How many keys of each block a key mask leaves, int64 `[B, nk]`; None without one."""
        return None if self.key_mask is None else kept_count(self.key_mask, self.n)

    def visible(self, device: torch.device) -> Tensor:
        """Pairs where some query of the block sees some key of the block: bool, `[B, 1, nq, nk]` with a key mask.

        Without one, and then on `device`, `[nq, nk]`; so is `whole`.
        """
        _, last_limit = self._limits(device)
        return self._key_edges(device)[0] <= last_limit[:, None]

    def whole(self, device: torch.device) -> Tensor:
        """Pairs where every query sees every key that is there; the causal frontier cuts what is visible, not whole."""
        first_limit, _ = self._limits(device)
        return self._key_edges(device)[1] <= first_limit[:, None]

    def _limits(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The last key that the first and the last query of each query block sees."""
        first = torch.arange(0, self.queries, self.m, device=device)
        if not self.is_causal:
            return (torch.full_like(first, self.keys - 1),) * 2
        return first + self.shift, (first + self.m).clamp(max=self.queries) - 1 + self.shift

    def _key_edges(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The first and the last key of each key block that are there."""
        if self.key_mask is not None:
            return first_kept(self.key_mask, self.n)[:, None, None], last_kept(self.key_mask, self.n)[:, None, None]
        first = torch.arange(0, self.keys, self.n, device=device)
        return first, (first + self.n).clamp(max=self.keys) - 1
