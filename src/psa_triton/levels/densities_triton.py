"""Density on a GPU: one read of the levels, next to nothing beside the attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch, warps_of_row


def read_density(levels: Tensor, blocks: Blocks) -> Tensor:
    """What `densities.read_density` computes, up to rounding; there is no key mask."""
    levels = levels.contiguous()
    shares = torch.empty(levels.shape[:3], dtype=torch.float32, device=levels.device)
    width = triton.next_power_of_2(blocks.columns)
    Launch(
        _read_shares_kernel,
        (shares.numel(),),
        dict(levels=levels, shares=shares, queries=blocks.queries, keys=blocks.keys),
        dict(BLOCK_M=blocks.m, BLOCK_N=blocks.n, CAUSAL=blocks.is_causal, WIDTH=width),
        warps=warps_of_row(width),
    ).run()
    seeing = min(blocks.queries, blocks.keys) if blocks.is_causal else blocks.queries
    return (shares.sum(-1, dtype=torch.float64) / max(seeing, 1)).float()


@triton.jit
def _read_shares_kernel(
    levels,
    shares,
    queries,
    keys,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Groups read over keys seen, summed over the queries of one row of blocks."""
    row = tl.program_id(0)
    columns = tl.cdiv(keys, BLOCK_N)
    first = row % tl.cdiv(queries, BLOCK_M) * BLOCK_M
    levels += row.to(tl.int64) * columns
    query = first + tl.arange(0, BLOCK_M)
    end = tl.minimum(query + 1 + keys - queries, keys) if CAUSAL else tl.zeros_like(query) + keys

    # What all queries of the row see whole, then block by block what the first of them does not.
    seen_by_all = tl.maximum(first + 1 + keys - queries, 0) // BLOCK_N if CAUSAL else columns
    whole = tl.arange(0, WIDTH)
    level = tl.load(levels + whole, mask=whole < seen_by_all, other=0).to(tl.int32)
    groups = tl.minimum(keys - whole * BLOCK_N, BLOCK_N) + level - 1
    exponent = (tl.maximum(level, 1).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127  # a shift, not a division
    read = tl.zeros_like(query) + tl.sum(tl.where(level > 0, groups >> exponent, 0))
    if CAUSAL:
        last = tl.minimum(first + BLOCK_M, queries) + keys - queries
        for j in range(seen_by_all, tl.cdiv(tl.maximum(last, 0), BLOCK_N)):
            of_block = tl.load(levels + j).to(tl.int32)
            size = tl.maximum(of_block, 1)
            length = tl.minimum(keys - j * BLOCK_N, BLOCK_N)
            visible = tl.minimum(tl.maximum(end - j * BLOCK_N, 0), length)
            up = tl.where(visible == length, size - 1, 0)  # a short last group is read where it is seen
            read += tl.where(of_block > 0, (visible + up) // size, 0)
    share = read.to(tl.float32) / tl.maximum(end, 1).to(tl.float32)
    tl.store(shares + row, tl.sum(tl.where((query < queries) & (end > 0), share, 0.0)))
