"""Queries, keys and values to measure attention on: of real models over real frames, and some made to break things."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class AttentionTensors:
    """What one attention layer attends with."""

    name: str
    """Such as `bikes/rope/layer 4`."""
    q: Tensor
    """float32 `[1, Hq, N, D]`, visual tokens in raster order: frames, then rows, then columns."""
    k: Tensor
    """float32 `[1, Hkv, N, D]`."""
    v: Tensor
    """float32 `[1, Hkv, N, D]`."""
    grid: Grid | None
    """Frames, height and width of the tokens; None for text."""
    is_causal: bool
    scale: float
    """Factor of the logits."""


def cache_folder() -> Path:
    """Where tensors that take long to make are kept: `$XDG_CACHE_HOME/psa_triton`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psa_triton" / "benchmark_tensors"


def cached(name: str, make: Callable[[], Mapping[str, Tensor]]) -> Path:
    """The safetensors file `name` of the cache folder, made if it is not there; it is never half a file."""
    path = cache_folder() / f"{name}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as part:
            save_file(dict(make()), Path(part) / path.name)
            os.replace(Path(part) / path.name, path)
    return path
