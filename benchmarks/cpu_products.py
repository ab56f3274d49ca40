"""Rates of the products that attention is made of, one thread: `python benchmarks/cpu_products.py`.

Says where the CPU kernel's time goes and what torch's SDPA leaves unused on this processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from psa_triton.products import linear
from psa_triton.tools.machine import hardware, versions

QUERIES, KEYS, DIM, SDPA_TOKENS = 128, 4096, 128, 4096


def best_seconds(function: Callable[[], object], rounds: int = 5, calls: int = 5) -> float:
    function()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def main() -> None:
    torch.set_num_threads(1)
    print(hardware(torch.device("cpu")), versions())
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = (torch.randn(n, DIM).to(dtype) for n in (QUERIES, KEYS, KEYS))
        weights = torch.rand(QUERIES, KEYS).to(dtype)
        long = [torch.randn(1, 1, SDPA_TOKENS, DIM).to(dtype) for _ in range(3)]
        cases: dict[str, tuple[int, Callable[[], object]]] = {
            "q @ k.T": (2 * QUERIES * KEYS * DIM, lambda q=q, k=k: q @ k.T),
            "p @ v": (2 * QUERIES * KEYS * DIM, lambda p=weights, v=v: p @ v),
            "SDPA": (4 * SDPA_TOKENS**2 * DIM, lambda x=long: F.scaled_dot_product_attention(*x)),
        }
        if dtype == torch.float32:
            cases["q @ k.T through oneDNN"] = (2 * QUERIES * KEYS * DIM, lambda q=q, k=k: linear(q, k, None))
        for name, (operations, function) in cases.items():
            print(f"{dtype!s:15} {name:23} {operations / best_seconds(function) / 1e9:6.0f} GFLOP/s")


if __name__ == "__main__":
    main()
