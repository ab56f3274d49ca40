"""PSA and its peers side by side, on one attention of real tensors: `python benchmarks/peers.py`.

Everything that runs on this machine runs; what does not is listed with the reason. Times are medians of interleaved
runs; errors are against dense attention in float32. `benchmarks/README.md` says how to add a peer.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from harness import Report, Run, heading, options, table
from peer_operators import BLOCK_M, OPERATORS, REFERENCE, WINDOW, LeftOut, Problem
from tensors.vit import GRID, vit_tensors
from torch import Tensor

from psa_triton.levels import density
from psa_triton.tools.clock import median_seconds

QUICK_GRID: Final = (4, 16, 16)
CHECKED_BLOCKS: Final = 16
"""Query blocks of each head whose output is compared with dense attention's."""


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
