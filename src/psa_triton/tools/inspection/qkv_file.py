"""q, k, v of an attention call in a safetensors file, with what is known of their tokens in its header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from psa_triton.tools.inspection.inputs import AttentionInputs, Grid


@dataclass(frozen=True)
class QKVFile:
    """Tensors of a file, and what its header says of them."""

    tensors: Mapping[str, Tensor]
    """`q` and `k`, and `v` where it is there."""
    header: Mapping[str, str]
    """Such as `grid`, `prefix_tokens`, `preset`, `layer`."""

    def inputs(
        self, *, grid: Grid | None = None, prefix_tokens: int | None = None, is_causal: bool = False
    ) -> AttentionInputs:
        """The tensors as the inputs of an attention, with what the header says of their tokens unless told otherwise.

        Raises:
            TypeError: dtypes that differ.
            ValueError: shapes that do not belong together, or do not fit the grid.
        """
        if grid is None and "grid" in self.header:
            grid = read_grid(self.header["grid"])
        if prefix_tokens is None:
            prefix_tokens = self.number("prefix_tokens")
        q, k, v = (self.tensors.get(name) for name in "qkv")
        assert q is not None and k is not None
        return AttentionInputs(q=q, k=k, v=v, grid=grid, prefix_tokens=prefix_tokens, is_causal=is_causal)

    def number(self, name: str) -> int:
        """A count in the header; 0 where it is not there.

        Raises:
            ValueError: it is no count.
        """
        if not (text := self.header.get(name, "0")).isdecimal():
            raise ValueError(f"qkv: expected a count as {name} in the file's header, got {text!r}")
        return int(text)


def read_grid(text: str) -> Grid:
    """(frames, height, width) from a text such as `8,12,12`.

    Raises:
        ValueError: it is no such text.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"grid: expected FRAMES,HEIGHT,WIDTH in tokens, such as 8,12,12, got {text!r}")
    frames, height, width = map(int, parts)
    return frames, height, width


def read_qkv(path: Path, device: torch.device) -> QKVFile:
    """Read a file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no safetensors file, or holds no tensors `q` and `k`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"qkv: there is no file {path}")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            names = list(file.keys())
            header = dict(file.metadata() or {})
            if missing := [name for name in "qk" if name not in names]:
                raise ValueError(
                    f"qkv: expected tensors q, k and perhaps v of [B, H, N, D] in {path}, found no "
                    f"{' and no '.join(missing)} among: {', '.join(names[:8]) or 'none'}"
                )
            return QKVFile({name: file.get_tensor(name) for name in "qkv" if name in names}, header)
    except SafetensorError as error:
        raise ValueError(f"qkv: expected a safetensors file, got {path} ({error})") from error


def qkv_bytes(inputs: AttentionInputs, header: Mapping[str, str]) -> bytes:
    """Content of a file of q, k and v, with their grid, prefix, and more words in its header."""
    known = {"prefix_tokens": str(inputs.prefix_tokens)}
    if inputs.grid is not None:
        known["grid"] = ",".join(map(str, inputs.grid))
    named = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    tensors = {name: x.cpu().contiguous() for name, x in named.items() if x is not None}
    return save(tensors, metadata={**header, **known})
