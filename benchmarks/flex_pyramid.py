"""PyTorch's FlexAttention over the same pyramid: what the same reading costs without a kernel of its own.

All levels of K and V are laid one after another, each filled up to whole kv blocks. A `BlockMask` names the kv blocks
that hold at least one wanted group, `mask_mod` the wanted groups within them, and `score_mod` adds `ln` of the count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from psa_triton.tools.bench.flex import listed

LEVELS = (1, 2, 4, 8)


@dataclass(frozen=True)
class FlexPyramid:
    """Keys and values at every level, and which of them each query block reads."""

    keys: Tensor
    values: Tensor
    log_count: Tensor
    """float32 `[P]`, added to the logits; -inf on rows without a token."""
    mask: BlockMask
    kv_block: int

    def attend(self, q: Tensor, *, scale: float, attention: Callable[..., Tensor] = flex_attention) -> Tensor:
        """Attention of `q [B, Hq, N, D]`; `attention` may be a compiled `flex_attention`."""
        log_count = self.log_count

        def add_count(score: Tensor, b: Tensor, h: Tensor, query: Tensor, row: Tensor) -> Tensor:
            return score + log_count[row]

        return attention(
            q,
            self.keys,
            self.values,
            score_mod=add_count,
            block_mask=self.mask,
            scale=scale,
            enable_gqa=q.shape[1] != self.keys.shape[1],
            kernel_options={"fwd_BLOCK_N": 64} if self.kv_block == 64 else None,
        )


def flex_pyramid(
    k: Tensor, v: Tensor, levels: Tensor, *, block_m: int, block_n: int, is_causal: bool, kv_block: int
) -> FlexPyramid:
    """The pyramid of as many queries as keys.

    Args:
        k, v: `[B, Hkv, N, D]`.
        levels: int8 `[B, Hq, ceil(N / block_m), ceil(N / block_n)]`, up to level 8.
        block_m, block_n: tokens of a query block and of a key block.
        is_causal: hide groups whose last token is later than the query.
        kv_block: rows that FlexAttention skips or reads together, a multiple of `block_n`.
    """
    tokens, blocks = k.shape[2], levels.shape[3]
    rows = {level: -(-(blocks * block_n // level) // kv_block) * kv_block for level in LEVELS}
    row_level = torch.cat(
        [torch.full((count,), level, dtype=torch.int8, device=k.device) for level, count in rows.items()]
    )
    first = torch.cat([torch.arange(count, device=k.device) * level for level, count in rows.items()])
    count = (tokens - first).clamp(min=0).minimum(row_level)
    row_block = (first // block_n).clamp(max=blocks - 1)
    last = first + count - 1

    def wanted(b: Tensor, h: Tensor, query: Tensor, row: Tensor) -> Tensor:
        chosen = (levels[b, h, query // block_m, row_block[row]] == row_level[row]) & (count[row] > 0)
        return chosen & (last[row] <= query) if is_causal else chosen

    touched = torch.cat([_any_of(levels == level, kv_block * level // block_n) for level in LEVELS], dim=-1)
    whole = torch.zeros_like(touched)
    if not is_causal and tokens % kv_block == 0:
        ones = _any_of(levels != 1, kv_block // block_n).logical_not()
        whole[..., : ones.shape[-1]] = ones
    partial, full = listed(touched & ~whole), listed(whole)
    mask = BlockMask.from_kv_blocks(
        *partial, *full, BLOCK_SIZE=(block_m, kv_block), mask_mod=wanted, seq_lengths=(tokens, len(row_level))
    )

    def pool(x: Tensor) -> Tensor:
        """Means of groups of true tokens `[B, H, P, D]`, filled up with zeros."""
        filled = [F.pad(x, (0, 0, 0, n * level - tokens)).unflatten(2, (n, level)) for level, n in rows.items()]
        sums = torch.cat([groups.sum(3, dtype=torch.float32) for groups in filled], dim=2)
        return (sums / count.clamp(min=1)[:, None]).to(x.dtype)

    return FlexPyramid(pool(k), pool(v), count.float().log(), mask, kv_block)


def _any_of(chosen: Tensor, count: int) -> Tensor:
    """Whether any of `count` neighbouring key blocks is chosen, bool `[B, H, nq, ceil(nk / count)]`."""
    return F.pad(chosen, (0, -chosen.shape[-1] % count)).unflatten(-1, (-1, count)).any(-1)
