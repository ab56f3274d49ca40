"""Which tiles of the attention kernels are fastest on the GPU at hand: candidates, a measurement, the user's table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest.mock import patch

import torch
from triton.errors import TritonError

from psa_triton.blocks import Blocks
from psa_triton.gpu import current_target
from psa_triton.kernels import Reading, attend
from psa_triton.kernels.triton.forward import suits_tma
from psa_triton.kernels.triton.operands import Operands
from psa_triton.kernels.triton.tiles import Case, Tiles, table_dim, user_file
from psa_triton.tools.files import write_file
from psa_triton.tools.shapes import AttentionShape

_CANDIDATES: Final = {
    ("attend", 2, 64): [(128, 128, 64, 8), (128, 128, 32, 8), (128, 64, 64, 8), (128, 64, 32, 8), (64, 64, 32, 4)],
    ("attend", 2, 128): [
        (128, 128, 64, 8),
        (128, 128, 32, 8),
        (128, 64, 64, 8),
        (128, 64, 32, 8),
        (128, 64, 16, 8),
        (128, 32, 32, 8),
        (64, 64, 32, 4),
        (64, 32, 32, 4),
    ],
    ("attend", 2, 256): [(128, 32, 32, 8), (64, 32, 32, 8), (64, 32, 16, 8), (32, 32, 16, 4), (16, 32, 16, 4)],
    ("attend", 4, 64): [(64, 32, 32, 4), (64, 32, 32, 8), (64, 16, 16, 8), (32, 16, 16, 4)],
    ("attend", 4, 128): [(64, 16, 16, 8), (32, 16, 16, 8), (16, 16, 16, 4)],
    ("attend", 4, 256): [(32, 16, 16, 8), (16, 16, 16, 8)],
    ("attend_tma", 2, 64): [(128, 128, 128, 4), (128, 64, 64, 4)],
    ("attend_tma", 2, 128): [(128, 128, 128, 4), (128, 64, 64, 4)],
    ("query_gradient", 2, 64): [(128, 32, 32, 4), (128, 32, 32, 8), (128, 32, 16, 8), (64, 32, 16, 4)],
    ("query_gradient", 2, 128): [(128, 32, 32, 8), (128, 32, 16, 8), (64, 32, 32, 4), (64, 32, 16, 4), (32, 32, 16, 4)],
    ("query_gradient", 2, 256): [(64, 32, 32, 8), (32, 32, 32, 8), (32, 32, 16, 4), (16, 16, 16, 4)],
    ("query_gradient", 4, 64): [(32, 32, 32, 4), (32, 16, 16, 4), (16, 16, 16, 4)],
    ("query_gradient", 4, 128): [(32, 32, 32, 8), (32, 16, 16, 8), (16, 16, 16, 4)],
    ("query_gradient", 4, 256): [(16, 16, 16, 8), (16, 16, 16, 4)],
    ("row_gradient", 2, 64): [(64, 128, 128, 8), (32, 128, 128, 8), (64, 64, 64, 4), (32, 64, 64, 4), (32, 32, 32, 4)],
    ("row_gradient", 2, 128): [(32, 64, 64, 4), (32, 64, 64, 8), (32, 32, 32, 4), (16, 32, 32, 4)],
    ("row_gradient", 2, 256): [(32, 32, 32, 4), (32, 32, 32, 8), (16, 32, 32, 8), (16, 16, 16, 4)],
    ("row_gradient", 4, 64): [(32, 32, 32, 4), (32, 32, 32, 8), (16, 16, 16, 4)],
    ("row_gradient", 4, 128): [(32, 16, 16, 8), (16, 16, 16, 8), (16, 16, 16, 4)],
    ("row_gradient", 4, 256): [(16, 16, 16, 8)],
}
"""By kernel, bytes of a number and head dimension, in the order of what compiled code promises; `Tiles` but stages."""
_AGREEMENT: Final = 0.01
"""What `attend_tma` computes may differ from what `attend` does by this much, relatively."""


def candidates(target: str, kernel: str, bytes: int, dim: int) -> list[Tiles]:
    """Tiles worth a try, most promising first; arguments as in `kernels.triton.tiles.Case`."""
    found = _CANDIDATES[kernel, bytes, dim]
    if target not in ("sm_90", "sm_100"):  # whose instructions alone take 128 keys whole
        found = [tiles for tiles in found if kernel != "attend" or tiles[1] < 128]
    if kernel == "attend_tma":
        return [Tiles(*tiles, 3) for tiles in found if target == "sm_90"]
    stages = (2, 1) if target.startswith("gfx") else (5,) if bytes == 2 else (5, 2)
    return [Tiles(*tiles, number) for tiles in found for number in stages]


@contextmanager
def only(tiles: Tiles | None, kernel: str | None = None) -> Iterator[None]:
    """Inside, the user's table is these tiles, for `kernel` or else for all; None for an empty table."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "tiles.json")
        if tiles is not None:
            wanted = {} if kernel is None else {"kernel": kernel}
            file.write_text(json.dumps([{"for": wanted, "tiles": astuple(tiles)}]))
        with patch.dict(os.environ, PSA_TILES=str(file)):
            yield


@dataclass(frozen=True)
class Trial:
    """What one candidate took."""

    kernel: str
    tiles: Tiles
    seconds: float | None
    """Of a forward, or of a backward; None if the kernel does not run so, or not right."""


def try_tiles(
    shape: AttentionShape,
    block_m: int,
    block_n: int,
    inputs: torch.Tensor,
    measure: Callable[[Callable[[], Any]], float],
) -> Iterator[Trial]:
    """Time each candidate of each kernel on random queries, keys, values and levels of a layer.

    Args:
        shape: the layer.
        block_m, block_n: tokens of a query block, of a key block.
        inputs: a tensor of the dtype and on the device wanted.
        measure: seconds that a call takes.
    """
    q, k, v = (
        torch.randn(1, h, shape.tokens, shape.dim, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
        for h in (shape.heads, shape.key_heads, shape.key_heads)
    )
    shares = torch.tensor([1, 1, 2, 4, 8, 8, 8] + 13 * [0], dtype=torch.int8, device=inputs.device)
    blocks = Blocks.of(q, k, block_m, block_n, shape.is_causal)
    levels = shares[torch.randint(len(shares), (1, shape.heads, blocks.rows, blocks.columns), device=inputs.device)]
    reading = Reading(shape.dim**-0.5, "none", int(shares.max()), "auto", "triton")

    def forward() -> torch.Tensor:
        return attend(q, k, v, levels, blocks, reading)[0]

    with only(None):
        out = forward()
    upstream = torch.randn_like(out)  # of a sum it would be expanded, and read by code of its own
    plain = Operands(q, k, v, k, v, key_step=None, spread=None, row_bias=None, row_last=None)
    by_tma = suits_tma(plain, reading.coarsest.bit_length(), blocks, reading.scale)
    for kernel in ("attend", *["attend_tma"] * by_tma, "query_gradient", "row_gradient"):
        for tiles in candidates(current_target(inputs.device), kernel, inputs.itemsize, table_dim(shape.dim)):
            with only(tiles, kernel):
                try:
                    if kernel.startswith("attend"):
                        with torch.no_grad():
                            agrees = kernel == "attend" or (forward() - out).norm() < _AGREEMENT * out.norm()
                            seconds = measure(forward) if agrees else None
                    else:
                        seconds = measure(lambda: torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True))
                # Too much shared memory, no code for it, or a Triton without what it is written in.
                except (TritonError, ImportError, RuntimeError, ValueError) as error:
                    if "CUDA error" in str(error):
                        raise
                    yield Trial(kernel, tiles, None)
                else:
                    yield Trial(kernel, tiles, seconds)


def write_best(trials: list[Trial], target: str, dtype: torch.dtype, shape: AttentionShape, block_n: int) -> Path:
    """Put the fastest of each kernel into the user's table, in place of what it says of the same case.

    `attend_tma`, which runs only where a table names it, is named where it is faster than `attend`.

    Returns:
        The table.
    """
    file = user_file()
    rules = json.loads(file.read_text()) if file.exists() else []
    kernels = dict.fromkeys(trial.kernel for trial in trials)
    fastest = {kernel: min((t for t in trials if t.kernel == kernel), key=_seconds) for kernel in kernels}
    for kernel, best in fastest.items():
        dim = table_dim(shape.dim)
        wanted = asdict(Case(target, kernel, dtype.itemsize, dim, block_n, shape.is_causal, corrected=False))
        if kernel == "row_gradient":
            del wanted["rows"]  # which differ from level to level
        rules = [rule for rule in rules if rule["for"] != wanted]
        is_beaten = kernel == "attend_tma" and _seconds(best) >= _seconds(fastest["attend"])
        if best.seconds is not None and not is_beaten:
            rules = [{"for": wanted, "tiles": astuple(best.tiles)}, *rules]
    write_file(file, ("[\n  " + ",\n  ".join(map(json.dumps, rules)) + "\n]\n").encode())
    return file


def _seconds(trial: Trial) -> float:
    return math.inf if trial.seconds is None else trial.seconds
