"""Attention over the visual tokens of a video model, once it is known how a call attends: the same in every library."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.exempt import Ranges
from psa_triton.impl import Impl
from psa_triton.importance import estimation_cost
from psa_triton.integrations.reuse import Attended, StepReuse, attend_once, probe_seed
from psa_triton.kernels import pyramid_attention
from psa_triton.levels import read_density


def attend_in_order(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: PSAConfig,
    *,
    layer: int,
    step: int | None,
    exempt_queries: Ranges = (),
    exempt_keys: Ranges = (),
    grid: tuple[int, int, int] | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
    reuse: StepReuse | None = None,
    nth: int = 0,
    probe: float | None = None,
) -> Attended:
    """Attention of tokens as the operator wants them, by the way that is theirs in this step.

    Args:
        q, k, v: `[B, H, N, D]`, other tokens first, visual ones in the order that their grid decides.
        config: of the layer in this step.
        layer: index.
        step: of the denoising; None where it is not known.
        exempt_queries: that read everything in full, those that are not visual among them.
        exempt_keys: that are read in full, likewise.
        grid: of the visual tokens, for the orders that go by content; None where they cannot have it.
        key_mask: bool `[B, N]`, False for padding.
        scale: of the logits.
        impl: implementation of the operator.
        reuse: what layers kept from earlier steps, where they reuse it.
        nth: which of the layer's calls in this forward.
        probe: share of the rows that are computed exactly where nothing is reused; None for the config's.

    Raises:
        ValueError: something is reused, and there is to be a gradient.
    """
    by_content = config.rearrange_method in ("SemanticAware", "Hybrid")

    def sparse(levels: Tensor | None) -> tuple[Tensor, Tensor]:
        if levels is None or by_content:  # clusters are others in each call, and so are the blocks
            return sparse_attention(
                q,
                k,
                v,
                config,
                grid=grid if by_content else None,
                exempt_queries=exempt_queries,
                exempt_keys=exempt_keys,
                key_mask=key_mask,
                scale=scale,
                impl=impl,
            )
        out = pyramid_attention(
            q,
            k,
            v,
            levels,
            block_m=config.block_m,
            block_n=config.block_n,
            scale=scale,
            pool_correction=config.pool_correction,
            key_mask=key_mask,
            impl=impl,
        )
        return out, levels

    def dense(rows: Tensor) -> Tensor:
        mask = None if key_mask is None else key_mask[:, None, None]
        return scaled_dot_product_attention(
            rows, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )

    if reuse is not None and config.reuse is not None and config.reuse.covers(layer):
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ValueError(
                "reuse: what is kept from earlier steps has no gradient; use torch.no_grad(), or "
                "config.replace(reuse=None)"
            )
        return reuse.attend(layer, q, sparse=sparse, dense=dense, nth=nth)
    share = config.probe if probe is None else probe
    return attend_once(q, sparse=sparse, dense=dense, probe=share, seed=probe_seed(step or 0, layer))


class Tally(NamedTuple):
    """What a call read and computed, as the recorder adds it up."""

    density: Tensor | float
    overhead: float
    error: tuple[Tensor, Tensor] | None
    densities: Tensor | None
    """Of each item and head, float32 `[B, H]`; None if sparse attention did not run."""


def tally(attended: Attended, config: PSAConfig, tokens: int, key_mask: Tensor | None = None) -> Tally:
    """Count a call of `tokens` keys."""
    densities = None
    if attended.levels is not None:
        queries = attended.out.shape[2]
        blocks = Blocks(config.block_m, config.block_n, queries, tokens, key_mask=key_mask)
        densities = read_density(attended.levels, blocks)
    estimate = attended.chosen * estimation_cost(config.importance, config.block_m, config.block_n)
    return Tally(
        density=(0.0 if densities is None else densities.mean()) + (attended.way == "refresh"),
        overhead=attended.probed / attended.out.shape[2] + estimate,
        error=None if attended.measured is None else attended.measured.mean(),
        densities=densities,
    )
