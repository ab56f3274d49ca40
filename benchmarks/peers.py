"""PSA and its peers side by side, on one attention of real tensors: `python benchmarks/peers.py`.

Everything that runs on this machine runs; what does not is listed with the reason. Times are medians of interleaved
runs; errors are against dense attention in float32.

A peer is a function that gets a `Problem` and gives what is to be timed; what it prepares outside is not timed: so are
masks and levels, but for the whole operator. To add one, write such a function and list it in `OPERATORS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from flex_pyramid import flex_pyramid
from harness import Report, Run, heading, options, table
from tensors import AttentionTensors, Grid
from tensors.vit import GRID, vit_tensors
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from psa_triton import PSAConfig, psa_attention, pyramid_attention
from psa_triton.levels import density, levels_of
from psa_triton.ordering import grid_order
from psa_triton.tools.bench.flex import block_mask
from psa_triton.tools.clock import median_seconds

QUICK_GRID: Final = (4, 16, 16)
CHECKED_BLOCKS: Final = 16
"""Query blocks of each head whose output is compared with dense attention's."""
BLOCK_M, BLOCK_N = 128, 64
BLOCKS = dict(block_m=BLOCK_M, block_n=BLOCK_N)
PYRAMID = PSAConfig(**BLOCKS, importance="pooled", use_rearrange=False)
"""The default shares: they read .15. Tokens are in Gilbert order already, as inside a model with PSA attached."""
BLOCK_SPARSE = PYRAMID.replace(mask_ratios={1: (0.0, 0.15), 0: (0.15, 1.0)})
"""As much, of full blocks alone."""
WINDOW: Final = (0.75, 0.445, 0.445)
"""Of frames, rows and columns, what a query reads: together as much."""


class LeftOut(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """Non-causal attention over tokens in Gilbert order; a number of tokens that whole blocks divide."""

    q: Tensor
    """`[1, H, N, D]`, as `k` and `v`."""
    k: Tensor
    v: Tensor
    grid: Grid

    @classmethod
    def of(cls, x: AttentionTensors, heads: int, device: torch.device, dtype: torch.dtype) -> Problem:
        """The first heads of `x`."""
        if x.grid is None or x.q.shape[2] % BLOCK_M:
            raise ValueError(f"x: expected tokens of a grid that blocks of {BLOCK_M} divide, got {x.q.shape[2]}")
        order = grid_order("Gilbert", x.grid)
        return cls(*(order.apply(t[:, :heads]).to(device, dtype) for t in (x.q, x.k, x.v)), x.grid)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @cached_property
    def pyramid_levels(self) -> Tensor:
        """int8 `[1, H, nq, nk]`, levels 1, 2, 8 and 0."""
        return levels_of(*self.tensors, PYRAMID)

    @cached_property
    def block_sparse_levels(self) -> Tensor:
        """int8 `[1, H, nq, nk]`, levels 1 and 0."""
        return levels_of(*self.tensors, BLOCK_SPARSE)

    def need(self, package: str | None = None, install: str = "", *, cuda: bool = False) -> None:
        """Raises `LeftOut` where the package or an NVIDIA GPU is missing."""
        if cuda and self.q.device.type != "cuda":
            raise LeftOut("needs an NVIDIA GPU")
        if package is not None and find_spec(package) is None:
            raise LeftOut(f"not installed: pip install {install}")


Timed = Callable[[], Tensor]


@dataclass(frozen=True)
class Operator:
    """A peer."""

    prepare: Callable[[Problem], Timed]
    reads: Literal["all keys", "levels 1/0", "pyramid", "a window"]


def sdpa(x: Problem) -> Timed:
    return partial(F.scaled_dot_product_attention, *x.tensors)


def sdpa_backend(backend: SDPBackend, x: Problem) -> Timed:
    x.need(cuda=True)
    return sdpa_kernel(backend)(sdpa(x))


def compiled_flex() -> Callable[..., Tensor]:
    # Uncompiled it writes all scores, and ignores lists of blocks.
    return torch.compile(flex_attention, dynamic=False)


def flex_block_sparse(x: Problem) -> Timed:
    """The mask of PSA with levels 1/0, as FlexAttention's."""
    mask = block_mask(x.block_sparse_levels == 1, **BLOCKS, tokens=x.q.shape[2])
    return partial(compiled_flex(), *x.tensors, block_mask=mask)


def flex_over_pyramid(x: Problem) -> Timed:
    """The groups that PSA reads; the pyramid is made beforehand."""
    pyramid = flex_pyramid(x.k, x.v, x.pyramid_levels, **BLOCKS, is_causal=False, kv_block=BLOCK_N)
    return partial(pyramid.attend, x.q, scale=x.q.shape[-1] ** -0.5, attention=compiled_flex())


def sage(x: Problem) -> Timed:
    """SageAttention 1: queries and keys in 8 bits, Triton."""
    x.need("sageattention", "'sageattention<2'", cuda=True)
    from sageattention import sageattn

    # It smooths the keys it is given in place.
    return lambda: sageattn(x.q, x.k.clone(), x.v, is_causal=False)


def natten(x: Problem) -> Timed:
    """Neighbourhood attention: each query reads a window of frames, rows and columns around it."""
    x.need("natten", "natten")
    from natten.functional import na3d

    order = grid_order("Gilbert", x.grid)
    q, k, v = (order.restore(t).transpose(1, 2).unflatten(1, x.grid).contiguous() for t in x.tensors)
    window = tuple(round(side * part) for side, part in zip(x.grid, WINDOW, strict=True))
    return lambda: order.apply(na3d(q, k, v, kernel_size=window).flatten(1, 3).transpose(1, 2))


def psa(config: PSAConfig, x: Problem) -> Timed:
    """With the estimate of importance and the choice of levels."""
    return partial(psa_attention, *x.tensors, config)


REFERENCE: Final = "torch SDPA"
OPERATORS: Final[dict[str, Operator]] = {
    REFERENCE: Operator(sdpa, "all keys"),
    "torch SDPA, flash": Operator(partial(sdpa_backend, SDPBackend.FLASH_ATTENTION), "all keys"),
    "torch SDPA, cuDNN": Operator(partial(sdpa_backend, SDPBackend.CUDNN_ATTENTION), "all keys"),
    "SageAttention 1": Operator(sage, "all keys"),
    "NATTEN": Operator(natten, "a window"),
    "FlexAttention": Operator(lambda x: partial(compiled_flex(), *x.tensors), "all keys"),
    "FlexAttention, block mask": Operator(flex_block_sparse, "levels 1/0"),
    "FlexAttention over the pyramid": Operator(flex_over_pyramid, "pyramid"),
    "PSA, levels 1/0 given": Operator(
        lambda x: partial(pyramid_attention, *x.tensors, x.block_sparse_levels, **BLOCKS), "levels 1/0"
    ),
    "PSA, levels given": Operator(
        lambda x: partial(pyramid_attention, *x.tensors, x.pyramid_levels, **BLOCKS), "pyramid"
    ),
    "PSA, levels 1/0, whole operator": Operator(partial(psa, BLOCK_SPARSE), "levels 1/0"),
    "PSA, whole operator": Operator(partial(psa, PYRAMID), "pyramid"),
}


def measure_operators(x: Problem, repeats: int) -> list[dict[str, Any]]:
    """A row for every peer."""
    runs, found = {}, {}
    checked = rows_checked(x)
    expected = F.scaled_dot_product_attention(*(t.float() for t in (x.q[:, :, checked], x.k, x.v)))
    for name, peer in OPERATORS.items():
        try:
            run = peer.prepare(x)
            difference = run()[:, :, checked].float() - expected
        # Whatever a peer raises that does not take such inputs on such hardware belongs in the table.
        except (LeftOut, RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0].removeprefix("LeftOut: ")
            found[name] = {"left_out": reason}
        else:
            runs[name], found[name] = run, {"error": float(difference.norm() / expected.norm())}
        print(f"{name}: {found[name].get('left_out', 'runs')}", flush=True)
    seconds = median_seconds(runs, repeats=repeats, device=x.q.device)
    levels = {"levels 1/0": x.block_sparse_levels, "pyramid": x.pyramid_levels}
    share = {"all keys": 1.0, "a window": math.prod(WINDOW)} | {
        reads: round(float(density(chosen).mean()), 4) for reads, chosen in levels.items()
    }
    times = {name: {"seconds": taken, "speedup": seconds[REFERENCE] / taken} for name, taken in seconds.items()}
    return [
        {"name": name, "reads": peer.reads, "density": share[peer.reads], **times.get(name, {}), **found[name]}
        for name, peer in OPERATORS.items()
    ]


def rows_checked(x: Problem) -> Tensor:
    """Queries of blocks that are spread over the sequence, int64."""
    blocks = x.q.shape[2] // BLOCK_M
    chosen = torch.linspace(0, blocks - 1, min(blocks, CHECKED_BLOCKS)).round().long() * BLOCK_M
    return (chosen[:, None] + torch.arange(BLOCK_M)).flatten().to(x.q.device)


def page(report: Report) -> str:
    """A row a peer."""
    words = (
        f"One layer of a vision transformer over a natural clip ({report['input']}), {report['dtype']}, Gilbert order,",
        f"{report['heads']} heads of {report['tokens']} tokens, D = 64. Density: groups read over keys. Error: of the",
        "output against dense attention in float32, relative L2. *whole operator*: with importance and choice of",
        "levels; elsewhere masks, levels and the pyramid for FlexAttention are given.",
        "",
    )
    rows = []
    for row in report["operators"]:
        cells = ["left out", "", row.get("left_out", "").replace("|", "/")]
        if "left_out" not in row:
            cells = [f"{row['seconds'] * 1e3:.1f}", f"{row['speedup']:.2f}", f"{row['error']:.4f}"]
        rows.append([row["name"], row["reads"], f"{row['density']:.3f}", *cells])
    columns = ["", "reads", "density", "ms", "speed-up over SDPA", "error"]
    return "\n".join([*heading(report, "Peers side by side", *words), *table(columns, rows), ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="1,024 tokens, to try this script")
    parser.add_argument("--heads", type=int, help="heads of the layer; by default 2 on a CPU, all 6 on a GPU")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layer = vit_tensors("bikes", 4, "rope", grid=QUICK_GRID if args.quick else GRID)
    x = Problem.of(layer, args.heads or (6 if device.type == "cuda" else 2), device, dtype)
    run = Run("peers", args.output, device)
    with torch.no_grad():
        operators = run.piece("operators", measure_operators, x, args.repeats)
    found = {
        "input": layer.name,
        "dtype": str(dtype).removeprefix("torch."),
        "heads": x.q.shape[1],
        "tokens": x.q.shape[2],
        "operators": operators,
    }
    run.write(found, page)


if __name__ == "__main__":
    main()
