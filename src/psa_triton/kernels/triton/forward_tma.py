"""The forward kernel for sm_90 in Gluon: one warp fetches tiles by TMA, two groups of four multiply them.

The rows of a listed block are neighbours, so a tile is made of boxes that one copy fetches each. What a level leaves
over fills up with boxes behind its last row, which TMA makes zeros: all tiles take the same way, and the last one of a
level gets a bias a row. Nobody has measured it, and nothing but a user's own table chooses it: see `docs/kernels.md`.
"""

from __future__ import annotations

import math

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch
from psa_triton.kernels.triton.operands import Operands
from psa_triton.kernels.triton.rows import query_tile
from psa_triton.kernels.triton.schedule import BlockLists
from psa_triton.kernels.triton.tiles import Tiles, user_file
from psa_triton.pyramid.pooling_triton import pooled_rows

_WIDE = gl.constexpr(64)
"""Columns of a box: 128 bytes, as wgmma has its operands."""
_HALF_M = gl.constexpr(64)
"""Query rows of a group of four warps."""

# Triton 3.9 has other names for two things.
_memory_as = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret
_load_box = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


def attend_tma(
    operands: Operands, lists: BlockLists, blocks: Blocks, scale: float, tiles: Tiles, out: Tensor, lse: Tensor
) -> None:
    """`forward.attend` of what `forward.suits_tma` lets through, into `out` and `lse`, by a ring of `tiles.stages`.

    Raises:
        ValueError: the kernel is not made for such tiles.
    """
    if (tiles.m, tiles.warps) != (128, 4) or tiles.n not in (64, 128) or tiles.n < blocks.n or tiles.stages < 2:
        raise ValueError(
            f"{user_file()}: expected tiles of attend_tma to have 128 queries, 64 or 128 keys but no fewer than a "
            f"block, 4 warps and at least 2 stages, got {tiles}; write them anew with `psa bench --tune-kernels`"
        )
    q, k, v = operands.q, operands.k, operands.v
    batch, heads, queries, dim = q.shape
    boxes = {}
    for shift in range(4):
        first, rows = pooled_rows(k.shape[2], blocks.n, 2, 1 << shift >> 1), blocks.columns * blocks.n >> shift
        for name, x, pooled in (("k", k, operands.pooled_k), ("v", v, operands.pooled_v)):
            level = pooled[:, :, first : first + rows] if 0 < shift < lists.shifts else x
            boxes[f"{name}{1 << shift}"] = _boxes(level, blocks.n >> shift)
    sizes = (batch, heads, heads // k.shape[1], queries, blocks.keys, blocks.columns)
    arguments = dict(q=q, lists=(lists.blocks, lists.starts), out=out, lse=lse, scale=scale * math.log2(math.e))
    constants = dict(DIM=dim, BLOCK_N=blocks.n, TILE_N=tiles.n, SHIFTS=lists.shifts, SLOTS=tiles.stages)
    Launch(
        _attend_tma_kernel,
        (blocks.rows * batch * heads,),
        boxes | arguments | dict(sizes=sizes, strides=(q.stride(), out.stride())),
        constants,
        warps=tiles.warps,
    ).run()


def _boxes(x: Tensor, rows: int) -> TensorDescriptor:
    """`x [B, H, N, D]` in boxes of `rows` by 128 bytes; those behind its last row are zeros."""
    return TensorDescriptor.from_tensor(x, [1, 1, rows, 64], gl.NVMMASharedLayout(128, 16, rank=4))


@gluon.jit
def _attend_tma_kernel(
    k1,
    k2,
    k4,
    k8,
    v1,
    v2,
    v4,
    v8,
    q,
    lists,
    out,
    lse,
    scale,
    sizes,
    strides,
    DIM: gl.constexpr,
    BLOCK_N: gl.constexpr,
    TILE_N: gl.constexpr,
    SHIFTS: gl.constexpr,
    SLOTS: gl.constexpr,
):
    blocks, starts = lists
    batch, heads, group, queries, tokens, columns = sizes
    q_strides, o_strides = strides
    tile, b, h = query_tile(batch, heads, queries, 2 * _HALF_M, 2 * _HALF_M, False)
    row_of_blocks = (b * heads + h) * gl.cdiv(queries, 2 * _HALF_M) + tile
    blocks += row_of_blocks * columns
    starts += row_of_blocks * (2 * SHIFTS + 1)
    q += b * q_strides[0] + h * q_strides[1]
    out += b * o_strides[0] + h * o_strides[1]
    lse += (b * heads + h) * queries

    dtype: gl.constexpr = k1.dtype
    ring_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    q_memory = gl.allocate_shared_memory(dtype, [2, _HALF_M, DIM], ring_layout)
    keys = gl.allocate_shared_memory(dtype, [SLOTS, TILE_N, DIM], ring_layout)
    values = gl.allocate_shared_memory(dtype, [SLOTS, TILE_N, DIM], ring_layout)
    filled = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    read = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for half in gl.static_range(2):
        mbarrier.init(turns.index(half), count=1)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(filled.index(slot), count=1)
        mbarrier.init(read.index(slot), count=2)
    fence_async_shared()

    ring = (keys, values, filled, read)
    of_queries = (q, q_strides[2], q_strides[3], out, o_strides[2], o_strides[3], lse, scale, queries, tokens)
    levels = ((k1, k2, k4, k8), (v1, v2, v4, v8))
    of_head = (b.to(gl.int32), (h // group).to(gl.int32))
    # The first partition has the four warps of the launch, and the registers that the others leave.
    gl.warp_specialize(
        [
            (_attend_half, (0, tile, q_memory, of_queries, ring, turns, starts, BLOCK_N, SHIFTS)),
            (_attend_half, (1, tile, q_memory, of_queries, ring, turns, starts, BLOCK_N, SHIFTS)),
            (_fetch, (levels, of_head, ring, blocks, starts, BLOCK_N, SHIFTS)),
        ],
        [4, 1],
        [232, 40],
    )


@gluon.jit
def _fetch(levels, of_head, ring, blocks, starts, BLOCK_N: gl.constexpr, SHIFTS: gl.constexpr):
    """The tiles of all levels, one after another, into the ring."""
    t = 0
    for shift in gl.static_range(SHIFTS):
        t = _fetch_level(t, levels[0][shift], levels[1][shift], of_head, ring, blocks, starts, shift, BLOCK_N >> shift)


@gluon.jit
def _fetch_level(t, k, v, of_head, ring, blocks, starts, shift: gl.constexpr, ROWS: gl.constexpr):
    keys, values, filled, read = ring
    SLOTS: gl.constexpr = keys.shape[0]
    BOXES: gl.constexpr = keys.shape[1] // ROWS
    PARTS: gl.constexpr = keys.shape[2] // _WIDE
    k_boxes = _memory_as(keys, k.dtype, [SLOTS * PARTS * BOXES, 1, 1, ROWS, _WIDE], k.layout)
    v_boxes = _memory_as(values, k.dtype, [SLOTS * PARTS * BOXES, 1, 1, ROWS, _WIDE], k.layout)
    begin = gl.load(starts + 2 * shift)
    length = gl.load(starts + 2 * shift + 2) - begin
    for at in range(0, length, BOXES):
        slot = t % SLOTS
        bar = filled.index(slot)
        mbarrier.wait(read.index(slot), (t // SLOTS & 1) ^ 1)
        mbarrier.expect(bar, 4 * BOXES * ROWS * PARTS * _WIDE)
        for box in gl.static_range(BOXES):
            row = gl.load(blocks + begin + at + box, mask=at + box < length, other=(1 << 30) // ROWS) * ROWS
            for part in gl.static_range(PARTS):
                place = (slot * PARTS + part) * BOXES + box
                corner = [of_head[0], of_head[1], row, part * _WIDE]
                _load_box(k, corner, bar, k_boxes.index(place))
                _load_box(v, corner, bar, v_boxes.index(place))
        t += 1
    return t


@gluon.jit
def _attend_half(half, tile, q_memory, of_queries, ring, turns, starts, BLOCK_N: gl.constexpr, SHIFTS: gl.constexpr):
    """Online softmax of half a query block over the tiles in the ring."""
    keys, values, filled, read = ring
    q, q_step, q_column, out, o_step, o_column, lse, scale, queries, tokens = of_queries
    q_memory, first_query = q_memory.index(half), (2 * tile + half) * _HALF_M
    SLOTS: gl.constexpr = keys.shape[0]
    TILE_N: gl.constexpr = keys.shape[1]
    DIM: gl.constexpr = keys.shape[2]
    rows_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    logit_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 16])
    total_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, total_layout, 2)

    m = first_query + gl.arange(0, _HALF_M, gl.SliceLayout(1, rows_layout))
    d = gl.arange(0, DIM, gl.SliceLayout(0, rows_layout))
    is_query = (m < queries)[:, None]
    q_tile = gl.load(q + m[:, None].to(gl.int64) * q_step + d[None, :] * q_column, mask=is_query, other=0.0)
    q_memory.store(q_tile)
    fence_async_shared()

    # Finite, so that a row that has seen nothing yet meets no inf - inf.
    top = gl.full((_HALF_M,), -3.0e38, gl.float32, gl.SliceLayout(1, logit_layout))
    mass = gl.zeros((_HALF_M,), gl.float32, gl.SliceLayout(1, logit_layout))
    total = gl.zeros((_HALF_M, DIM), gl.float32, total_layout)
    nothing = gl.zeros((_HALF_M, TILE_N), gl.float32, logit_layout)
    n = gl.arange(0, TILE_N, gl.SliceLayout(0, logit_layout))
    t = 0
    # Halves take turns at products, so that one multiplies while the other computes weights.
    mbarrier.wait(turns.index(half), 1 ^ half)
    for shift in range(SHIFTS):
        rows = BLOCK_N >> shift
        begin = gl.load(starts)
        whole = (gl.load(starts + 1) - begin) * rows
        length = (gl.load(starts + 2) - begin) * rows
        starts += 2
        for at in range(0, length, TILE_N):
            slot = t % SLOTS
            mbarrier.wait(filled.index(slot), t // SLOTS & 1)
            products = warpgroup_mma(q_memory, keys.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
            products = warpgroup_mma_wait(0, deps=(products,))
            mbarrier.arrive(turns.index(1 - half), count=1)
            factor = scale
            bias = shift * 1.0
            if at + TILE_N > whole:
                # Behind whole blocks stands, if anything, the last one of the sequence, whose last group may be short.
                is_cut = length > whole
                full = whole + gl.where(is_cut, tokens % BLOCK_N >> shift, 0) - at
                short = gl.log2(gl.where(is_cut, tokens % (1 << shift), 0).to(gl.float32))  # -inf if there is none
                biases = gl.where(n < full, shift * 1.0, gl.where(n == full, short, float("-inf")))
                products = products * scale + biases[None, :]
                factor = 1.0
                bias = 0.0
            new_top = gl.maximum(top, gl.max(products, axis=1) * factor + bias)
            weights = gl.exp2(products * factor - (new_top - bias)[:, None])
            fade = gl.exp2(top - new_top)
            mass = mass * fade + gl.sum(weights, axis=1)
            top = new_top
            total = total * gl.convert_layout(fade, gl.SliceLayout(1, total_layout))[:, None]
            weights = gl.convert_layout(weights.to(keys.dtype), weight_layout)
            mbarrier.wait(turns.index(half), (t & 1) ^ half)
            total = warpgroup_mma(weights, values.index(slot), total, is_async=True)
            total = warpgroup_mma_wait(0, deps=(total,))
            mbarrier.arrive(read.index(slot), count=1)
            t += 1
    mbarrier.arrive(turns.index(1 - half), count=1)

    is_empty = mass == 0.0  # the query saw nothing
    mass = gl.where(is_empty, 1.0, mass)
    total = total / gl.convert_layout(mass, gl.SliceLayout(1, total_layout))[:, None]
    q_memory.store(total.to(keys.dtype))
    out_tile = q_memory.load(rows_layout)
    gl.store(out + m[:, None].to(gl.int64) * o_step + d[None, :] * o_column, out_tile, mask=is_query)
    natural = gl.where(is_empty, float("-inf"), (top + gl.log2(mass)) * 0.6931471805599453)
    m = first_query + gl.arange(0, _HALF_M, gl.SliceLayout(1, logit_layout))
    gl.store(lse + m, natural, mask=m < queries)
