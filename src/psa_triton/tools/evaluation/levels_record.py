"""What the sparse calls of a run read, in bounded memory: a `LevelRecording` is an `on_levels` of `apply_psa`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import LevelRecord
from psa_triton.ordering import TokenOrder

_CODES: Final = (0, 1, 2, 4, 8, 16, 32, 64)
"""Levels by their code, which has four bits."""
_HEADS_SHARE: Final = 8
"""One call's heads take at most this part of the memory, so that several calls are kept."""


class CallSite(NamedTuple):
    """Where a call stands in a run."""

    transformer: str
    layer: int
    step: int


@dataclass(frozen=True)
class TokenLayout:
    """How a sequence is cut into blocks.

    Attributes:
        grid: visual tokens as (frames, height, width).
        prefix_tokens: text tokens before them.
        block_m: tokens per query block.
        block_n: tokens per key block.
        order: of the visual tokens; None: as they come.
        in_place: whether it is known where tokens stand; not so where each layer finds clusters of its own.
    """

    grid: tuple[int, int, int]
    prefix_tokens: int
    block_m: int
    block_n: int
    order: TokenOrder | None
    in_place: bool


@dataclass(frozen=True)
class LevelMap:
    """The levels of some heads of one call.

    Attributes:
        heads: their indexes.
        packed: uint8 `[heads, nq, ceil(nk / 2)]` on the CPU: two codes of 4 bits a byte, the first in the low bits; 0
            stands for level 0, `c` for level `2 ** (c - 1)`.
        key_blocks: nk.
    """

    heads: tuple[int, ...]
    packed: Tensor
    key_blocks: int

    def levels(self, head: int) -> Tensor:
        """Levels of a head, int8 `[nq, nk]`.

        Raises:
            KeyError: the head was not kept.
        """
        if head not in self.heads:
            raise KeyError(f"head: expected one of {list(self.heads)}, which were kept, got {head}")
        packed = self.packed[self.heads.index(head)]
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., : self.key_blocks]
        return torch.tensor(_CODES, dtype=torch.int8)[codes.long()]


@dataclass
class _HeadTotal:
    calls: int
    densities: Tensor


@dataclass
class LevelRecording:
    """Keeps densities of every head, layer and step, and level maps of as many as fit.

    Of a step's calls the first one's last batch entry is mapped: with guidance, in diffusers' pipelines, that is the
    forward for the prompt. Where maps do not fit into memory, every second step is let go, again and again, and then
    every second layer; of many heads an even choice is kept.

    Attributes:
        max_bytes: of all maps together.
        maps: what was kept.
        layout: of the first call, and so of the run; None before it.
        config: likewise.
        shape: of the first call's levels, `(B, H, nq, nk)`.
    """

    max_bytes: int = 8 << 20
    maps: dict[CallSite, LevelMap] = field(default_factory=dict, init=False)
    layout: TokenLayout | None = field(default=None, init=False)
    config: PSAConfig | None = field(default=None, init=False)
    shape: tuple[int, ...] | None = field(default=None, init=False)
    _totals: dict[CallSite, _HeadTotal] = field(default_factory=dict, init=False, repr=False)
    _strides: dict[str, int] = field(default_factory=lambda: {"step": 1, "layer": 1}, init=False, repr=False)

    def __call__(self, record: LevelRecord) -> None:
        """Keep what there is to keep of a call."""
        site = CallSite(record.transformer, record.layer, record.step or 0)
        if self.layout is None:
            self.layout, self.config, self.shape = _layout(record), record.config, tuple(record.levels.shape)
        density = record.densities.mean(0)
        total = self._totals.setdefault(site, _HeadTotal(0, torch.zeros_like(density)))
        first = total.calls == 0
        total.calls += 1
        total.densities = total.densities + density
        if first and all(getattr(site, name) % stride == 0 for name, stride in self._strides.items()):
            self.maps[site] = self._map(record.levels[-1])
            self._thin()

    @property
    def densities(self) -> Mapping[CallSite, tuple[float, ...]]:
        """Density of each head, mean over a step's calls and batch; waits for the device."""
        return {site: tuple((total.densities / total.calls).tolist()) for site, total in self._totals.items()}

    @property
    def calls(self) -> int:
        """Sparse calls so far."""
        return sum(total.calls for total in self._totals.values())

    def _map(self, levels: Tensor) -> LevelMap:
        heads, queries, keys = levels.shape
        fit = min(heads, max(1, self.max_bytes // _HEADS_SHARE // (queries * -(-keys // 2))))
        chosen = [place * heads // fit for place in range(fit)]
        return LevelMap(tuple(chosen), _pack(levels[chosen]), keys)

    def _thin(self) -> None:
        """Let maps go until the rest fits."""
        while sum(entry.packed.numel() for entry in self.maps.values()) > self.max_bytes and len(self.maps) > 1:
            name = "step" if len({site.step for site in self.maps}) > 1 else "layer"
            self._strides[name] *= 2
            stride = self._strides[name]
            self.maps = {site: entry for site, entry in self.maps.items() if getattr(site, name) % stride == 0}


def _layout(record: LevelRecord) -> TokenLayout:
    config = record.config
    clusters = config.use_rearrange and config.rearrange_method in ("SemanticAware", "Hybrid")
    return TokenLayout(
        record.grid, record.prefix_tokens, config.block_m, config.block_n, record.order, in_place=not clusters
    )


def _pack(levels: Tensor) -> Tensor:
    """Levels int8 `[..., nk]` as codes, two a byte, on the CPU."""
    # log2 of a level is its place among powers of two; +1 leaves 0 to level 0.
    codes = torch.where(levels > 0, levels.clamp(min=1).float().log2().round() + 1, 0).to(torch.uint8)
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return (codes[..., 0::2] | codes[..., 1::2] << 4).cpu()
