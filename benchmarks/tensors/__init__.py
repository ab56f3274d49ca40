"""Queries, keys and values to measure attention on: of real models over real frames, and some made to break things."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from psa_triton.tools.files import write_file

Grid = tuple[int, int, int]
"""Frames, height and width of the tokens."""
Attended = tuple[Tensor, Tensor, Tensor]
"""q `[B, Hq, N, D]`, k and v `[B, Hkv, N, D]` of one layer, rotary embeddings applied."""


@dataclass(frozen=True)
class AttentionTensors:
    """What one attention layer attends with, float32; visual tokens frame by frame, row by row."""

    name: str
    """Such as `bikes/rope/layer 4`."""
    q: Tensor
    """`[1, Hq, N, D]`."""
    k: Tensor
    """`[1, Hkv, N, D]`."""
    v: Tensor
    """`[1, Hkv, N, D]`."""
    grid: Grid | None
    """None for text, which has a causal mask."""

    @property
    def is_causal(self) -> bool:
        return self.grid is None

    @property
    def scale(self) -> float:
        """Factor of the logits."""
        return self.q.shape[-1] ** -0.5


class Tap(TorchFunctionMode):
    """Keeps what some layers get, of a model that runs `scaled_dot_product_attention` once a layer."""

    def __init__(self, layers: Collection[int]) -> None:
        super().__init__()
        self.attended: list[Attended] = []
        """Of each layer, in the order in which they run."""
        self._layers, self._calls = layers, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            if self._calls in self._layers:
                self.attended.append(args[:3])
            self._calls += 1
        return func(*args, **(kwargs or {}))


def cached(name: str, make: Callable[[], Mapping[str, Tensor]]) -> Path:
    """The safetensors file `name` below `$XDG_CACHE_HOME` (by default `~/.cache`), made if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psa_triton" / "benchmark_tensors"
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        write_file(path, save(dict(make())))
    return path
