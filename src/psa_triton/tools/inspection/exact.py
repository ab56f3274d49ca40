"""Exact attention of a few query blocks: where its mass lies, and how far from it sparse attention is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psa_triton.blocks import block_count
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.kept import in_groups
from psa_triton.kernels import pyramid_attention
from psa_triton.tools.inspection.inputs import AttentionInputs


@dataclass(frozen=True)
class ExactSample:
    """Exact attention of query blocks spread evenly over the sequence.

    Attributes:
        blocks: which query blocks.
        mass: attention mass of each key block, mean over a block's queries: float32 `[H, blocks, nk]`, on the CPU;
            rows sum to 1.
        errors: of each head the L2 norm of sparse minus exact output over that of the exact one; None without values.
    """

    blocks: tuple[int, ...]
    mass: Tensor
    errors: tuple[float, ...] | None


def spread_evenly(count: int, wanted: int) -> tuple[int, ...]:
    """`wanted` of `count` indexes, the middles of as many equal parts; all of them if there are fewer."""
    wanted = min(count, wanted)
    return tuple((2 * part + 1) * count // (2 * wanted) for part in range(wanted))


def sample_exactly(
    inputs: AttentionInputs, levels: Tensor, config: PSAConfig, *, query_blocks: int, impl: Impl
) -> ExactSample:
    """Compute a sample; scores of one query block of one head exist at a time.

    Args:
        inputs: a batch of one, as many key heads as query heads, in the order in which tokens are cut into blocks.
        levels: int8 `[1, H, nq, nk]`.
        config: its blocks, and how groups are read.
        query_blocks: how many; all if there are fewer.
        impl: implementation of the sparse operator.
    """
    q, k, v, is_causal = inputs.q, inputs.k, inputs.v, inputs.is_causal
    heads, query_tokens, key_tokens = q.shape[1], q.shape[2], k.shape[2]
    blocks = spread_evenly(levels.shape[2], query_blocks)
    mass = torch.zeros(heads, len(blocks), levels.shape[3])
    difference, size = torch.zeros(heads, dtype=torch.float64), torch.zeros(heads, dtype=torch.float64)
    for place, block in enumerate(blocks):
        rows = slice(block * config.block_m, min((block + 1) * config.block_m, query_tokens))
        # Aligned at the bottom right, the block's queries see just these keys, and mask each other among the last.
        seen = rows.stop + key_tokens - query_tokens if is_causal else key_tokens
        key_blocks = block_count(seen, config.block_n)
        queries, keys = q[:, :, rows], k[:, :, :seen]
        if v is not None:
            found = pyramid_attention(
                queries,
                keys,
                v[:, :, :seen],
                levels[:, :, block : block + 1, :key_blocks].contiguous(),
                block_m=config.block_m,
                block_n=config.block_n,
                is_causal=is_causal,
                pool_correction=config.pool_correction,
                qk_dtype=config.qk_dtype,
                impl=impl,
            )
        for head in range(heads):
            weights = _weights(queries[0, head].float(), keys[0, head].float(), is_causal)
            mass[head, place, :key_blocks] = _mass(weights, config.block_n).cpu()
            if v is not None:
                expected = weights @ v[0, head, :seen].float()
                difference[head] += (found[0, head] - expected).square().sum().double().cpu()
                size[head] += expected.square().sum().double().cpu()
    errors = (difference / size.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()
    return ExactSample(blocks, mass, None if v is None else tuple(errors.tolist()))


def _weights(q: Tensor, k: Tensor, is_causal: bool) -> Tensor:
    """Attention weights float32 `[queries, keys]`; the last query sees all keys."""
    logits = q @ k.T * q.shape[-1] ** -0.5
    if is_causal:
        hidden = torch.ones(logits.shape, dtype=torch.bool, device=q.device).triu(k.shape[0] - q.shape[0] + 1)
        logits.masked_fill_(hidden, -torch.inf)
    return logits.softmax(-1)


def _mass(weights: Tensor, block_n: int) -> Tensor:
    """Mass of each key block, mean over the queries: `[nk]`."""
    return in_groups(weights.mean(0), block_n).sum(-1)
