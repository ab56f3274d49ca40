"""What the sparse calls of a run read, in bounded memory: a `LevelRecording` is an `on_levels` of `apply_psa`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from psa_triton.integrations.diffusers import LevelRecord

_HEADS_SHARE: Final = 8
"""One call's heads take at most this part of the memory, so that several calls are kept."""


class CallSite(NamedTuple):
    """Where a call stands in a run."""

    transformer: str
    layer: int
    step: int


class LevelMap(NamedTuple):
    """The levels of some heads of one call."""

    heads: tuple[int, ...]
    """Their indexes."""
    packed: Tensor
    """uint8 `[heads, nq, ceil(nk / 2)]` on the CPU: two codes of 4 bits a byte, the first in the low bits; 0 stands for
    level 0, `c` for level `2 ** (c - 1)`."""


@dataclass
class LevelRecording:
    """Keeps densities of every head, layer and step, and level maps of as many as fit.

    Of a step's calls the first one's last batch entry is mapped: with guidance, in diffusers' pipelines, that is the
    forward for the prompt. Where maps do not fit into memory, every second step is let go, again and again, and then
    every second layer; of many heads an even choice is kept.

    Attributes:
        max_bytes: of all maps together.
        maps: what was kept.
        layout: how the first call's sequence, and so the run's, is cut into blocks, as plain data but for the order of
            the visual tokens, a `TokenOrder` or None: as they come; None before that call.
    """

    max_bytes: int = 8 << 20
    maps: dict[CallSite, LevelMap] = field(default_factory=dict, init=False)
    layout: Mapping[str, Any] | None = field(default=None, init=False)
    _calls: Counter[CallSite] = field(default_factory=Counter, init=False, repr=False)
    _densities: dict[CallSite, Tensor] = field(default_factory=dict, init=False, repr=False)
    _strides: dict[str, int] = field(default_factory=lambda: {"step": 1, "layer": 1}, init=False, repr=False)

    def __call__(self, record: LevelRecord) -> None:
        """Keep what there is to keep of a call."""
        site = CallSite(record.transformer, record.layer, record.step or 0)
        if self.layout is None:
            self.layout = _layout(record)
        self._calls[site] += 1
        self._densities[site] = self._densities.get(site, 0.0) + record.densities.mean(0)
        if self._calls[site] == 1 and all(getattr(site, name) % stride == 0 for name, stride in self._strides.items()):
            self.maps[site] = self._map(record.levels[-1])
            self._thin()

    @property
    def densities(self) -> Mapping[CallSite, tuple[float, ...]]:
        """Density of each head, mean over a step's calls and batch; waits for the device."""
        return {site: tuple((total / self._calls[site]).tolist()) for site, total in self._densities.items()}

    def _map(self, levels: Tensor) -> LevelMap:
        heads, queries, keys = levels.shape
        fit = min(heads, max(1, self.max_bytes // _HEADS_SHARE // (queries * -(-keys // 2))))
        chosen = [place * heads // fit for place in range(fit)]
        return LevelMap(tuple(chosen), _pack(levels[chosen]))

    def _thin(self) -> None:
        """Let maps go until the rest fits."""
        while sum(entry.packed.numel() for entry in self.maps.values()) > self.max_bytes and len(self.maps) > 1:
            name = "step" if len({site.step for site in self.maps}) > 1 else "layer"
            self._strides[name] *= 2
            stride = self._strides[name]
            self.maps = {site: entry for site, entry in self.maps.items() if getattr(site, name) % stride == 0}


def _layout(record: LevelRecord) -> dict[str, Any]:
    config = record.config
    clusters = config.use_rearrange and config.rearrange_method in ("SemanticAware", "Hybrid")
    return {
        "grid": list(record.grid),
        "prefix": record.prefix_tokens,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "query_blocks": record.levels.shape[2],
        "key_blocks": record.levels.shape[3],
        "in_place": not clusters,  # of clusters, which each layer finds for itself, it is not known where tokens stand
        "order": record.order,
    }


def _pack(levels: Tensor) -> Tensor:
    """Levels int8 `[..., nk]` as codes, two a byte, on the CPU."""
    # log2 of a level is its place among powers of two; +1 leaves 0 to level 0.
    codes = torch.where(levels > 0, levels.clamp(min=1).float().log2().round() + 1, 0).to(torch.uint8)
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return (codes[..., 0::2] | codes[..., 1::2] << 4).cpu()
