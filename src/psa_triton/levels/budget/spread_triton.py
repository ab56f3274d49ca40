"""The spread of groups on a GPU, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch, tile_of_head


def group_spread(x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """What `spread.group_spread` computes, up to the order of sums."""
    batch, heads, tokens, dim = x.shape
    spread = x.new_empty(batch, heads, blocks.columns, blocks.n.bit_length() - 1, dtype=torch.float32)
    means = x.new_empty(batch, heads, blocks.columns, dim, dtype=torch.float32)
    keep = blocks.key_mask
    Launch(
        _group_spread_kernel,
        (blocks.columns * batch * heads,),
        dict(
            x=x,
            spread=spread,
            means=means,
            keep=None if keep is None else keep.to(torch.int8).contiguous(),
            heads=heads,
            tokens=tokens,
            x_strides=x.stride(),
        ),
        dict(DIM=dim, DIM_TILE=triton.next_power_of_2(dim), BLOCK=blocks.n, SCALES=spread.shape[-1]),
        warps=8 if blocks.n * dim > 8192 else 4,
    ).run()
    return spread, means


@triton.jit
def _group_spread_kernel(
    x,
    spread,
    means,
    keep,
    heads,
    tokens,
    x_strides,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALES: tl.constexpr,
):
    number, head = tile_of_head(tl.cdiv(tokens, BLOCK))
    block = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DIM_TILE)
    t = tl.arange(0, BLOCK)
    length = tl.minimum(tokens - number * BLOCK, BLOCK)
    x += (head // heads) * x_strides[0] + (head % heads) * x_strides[1] + number.to(tl.int64) * BLOCK * x_strides[2]
    is_there = t < length
    if keep is not None:
        keep += (head // heads) * tokens + number * BLOCK
        is_there = tl.load(keep + t, mask=is_there, other=0) != 0
        length = tl.maximum(tl.sum(is_there.to(tl.int32)), 1)
        kept = is_there.to(tl.float32)
    inside = is_there[:, None] & (d[None, :] < DIM)
    mean = tl.load(x + t[:, None] * x_strides[2] + d[None, :] * x_strides[3], mask=inside, other=0.0).to(tl.float32)
    total = 0.0
    for s in tl.static_range(1, SCALES + 1):
        group = tl.arange(0, BLOCK >> s)
        if keep is not None:
            first_count, second_count = tl.split(tl.reshape(kept, (BLOCK >> s, 2)))
            count = first_count + second_count
            kept = count
        else:
            first_count = tl.minimum(tl.maximum(length - (group << s), 0), 1 << (s - 1)).to(tl.float32)
            count = tl.minimum(tl.maximum(length - (group << s), 0), 1 << s).to(tl.float32)
        share = (count - first_count) / tl.maximum(count, 1.0)
        halves = tl.permute(tl.reshape(mean, (BLOCK >> s, 2, DIM_TILE)), (0, 2, 1))
        first, second = tl.split(halves)
        apart = second - first
        total += tl.sum(first_count * share * tl.sum(apart * apart, axis=1))
        mean = first + apart * share[:, None]
        tl.store(spread + block * SCALES + s - 1, total / length)
    tl.store(means + block * DIM + d, tl.reshape(mean, (DIM_TILE,)), mask=d < DIM)
