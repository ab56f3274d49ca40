"""Error of sparse attention at equal cost on real tensors: `python benchmarks/real_attention.py`.

Queries, keys and values are those of a pretrained vision transformer over two natural clips, of the built-in video
model, and some made to break things (`benchmarks/tensors/`). Every way to be sparse is scaled until its total cost,
estimation included, is the wanted one; `--quick` tries everything on tiny inputs in a minute.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from real.inputs import InputSet, other_sets, vit_sets
from real.measure import Point, measure_method
from real.report import SHOWN_COST, draw, markdown
from real.sample import take_sample

from psa_triton.tools.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
COSTS = (0.06, 0.10, SHOWN_COST, 0.30)
QUICK_COSTS = (SHOWN_COST, 0.30)


def measure_set(inputs: InputSet, blocks: int, costs: tuple[float, ...]) -> list[dict[str, Any]]:
    """A row for every method, under each of its names, and every cost."""
    listed = list(inputs.methods())
    distinct = {str(method): method for _, _, method in listed}
    orders = {method.order for method in distinct.values()}
    found: dict[str, list[list[Point]]] = {key: [] for key in distinct}
    for case in inputs.cases():
        for order in sorted(orders):
            sample = take_sample(case, order, block_m=inputs.block_m, blocks=blocks)
            for key, method in distinct.items():
                if method.order == order:
                    found[key].append(measure_method(sample, method, costs))
        print(f"{case.name} measured", flush=True)
    return [
        summarise(points) | {"group": group, "method": name, "set": inputs.name}
        for group, name, method in listed
        for points in zip(*found[str(method)], strict=True)
    ]


def summarise(points: tuple[Point, ...]) -> dict[str, Any]:
    """One method at one cost over the cases of a set."""
    return {
        "wanted": points[0].wanted,
        "density": round(statistics.mean(p.density for p in points), 4),
        "cost": round(statistics.mean(p.cost for p in points), 4),
        "error": round(statistics.mean(e for p in points for e in p.errors), 5),
        "worst": round(max(e for p in points for e in p.errors), 5),
        "reached": all(p.is_reached for p in points),
    }


def write_report(report: dict[str, Any], folder: Path) -> None:
    stem = f"real_attention_{report['date'][:10]}"
    report = report | {"picture": f"{stem}.png"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(markdown(report))
    draw(report, folder / f"{stem}.png")
    print(f"written: {folder / stem}.json, .md and .png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny inputs and two costs, to try this script")
    parser.add_argument("--blocks", type=int, default=16, help="query blocks of each head that are looked at")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON, the Markdown and the picture")
    args = parser.parse_args()
    began = time.monotonic()
    costs = QUICK_COSTS if args.quick else COSTS
    vit, others = vit_sets(quick=args.quick), other_sets(quick=args.quick)
    with torch.no_grad():
        rows = [row for inputs in (*others, *vit) for row in measure_set(inputs, args.blocks, costs)]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/real_attention.py", *sys.argv[1:]]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "seconds": round(time.monotonic() - began),
        "blocks": args.blocks,
        "costs": costs,
        "vit_sets": [inputs.name for inputs in vit],
        "other_sets": [inputs.name for inputs in others],
        "rows": rows,
    }
    write_report(report, args.output)


if __name__ == "__main__":
    main()
