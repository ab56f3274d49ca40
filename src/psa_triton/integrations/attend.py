"""Attention of one call, once it is known how its tokens are put for the operator: the same in every library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig, Way
from psa_triton.exempt import Ranges
from psa_triton.impl import Impl
from psa_triton.importance import estimation_cost
from psa_triton.integrations.reuse import Attended, StepReuse, attend_once, probe_seed
from psa_triton.integrations.stats import Tally
from psa_triton.kernels import pyramid_attention
from psa_triton.levels import read_density
from psa_triton.ordering import TokenOrder

Grid: TypeAlias = tuple[int, int, int]
"""Frames, height and width of visual tokens in raster order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """How the tokens of a call are put for the operator: those that are not visual first, the others as grids say."""

    grid: Grid | None = None
    """Of the visual tokens, for the orders that go by content; None where they cannot have it."""
    others: int = 0
    """Tokens that are not visual."""
    curve: Tensor | None = None
    """Order of the visual tokens among themselves, int64 `[V]`; None for their own."""
    queries: TokenOrder | None = None
    """Of `[N]` or `[B, 1, N]`; None where all stay in place."""
    keys: TokenOrder | None = None
    """The same, but where there are more keys than queries."""
    key_mask: Tensor | None = None
    """bool `[B, Nk]`, False for padding, in this order."""
    exempt_queries: Ranges = ()
    """Those that read everything in full, in this order."""
    exempt_keys: Ranges = ()
    """Those that are read in full, likewise."""
    is_causal: bool = False
    """Query `i` sees keys up to `i + Nk - Nq`. Such calls are not measured: a probe does not know its rows' places."""


class Answer(NamedTuple):
    """How a call was answered."""

    out: Tensor
    """`[B, H, Nq, D]`, tokens where they were."""
    way: Way
    tally: Tally
    levels: Tensor | None
    """What sparse attention read, int8 `[B, H, nq, nk]`; None if it did not run."""
    densities: Tensor | None
    """Of each item and head, float32 `[B, H]`; None likewise."""
    qkv: tuple[Tensor, Tensor, Tensor]
    """Of the call, as its layout puts them."""


def attend_in_order(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: PSAConfig,
    layout: Layout,
    *,
    layer: int = 0,
    step: int | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
    reuse: StepReuse | None = None,
    nth: int = 0,
    probe: float | None = None,
) -> Answer:
    """Attention in the order of a layout, by the way that is the layer's in this step.

    Args:
        q, k, v: `[B, H, N, D]`, any strides.
        config: of the layer in this step.
        layout: of the tokens.
        layer: index.
        step: of the denoising; None where it is not known.
        scale: of the logits.
        impl: implementation of the operator.
        reuse: what layers kept from earlier steps, where they reuse it.
        nth: which of the layer's calls in this forward.
        probe: share of the rows that are computed exactly where nothing is reused; None for the config's.

    Raises:
        ValueError: something is reused, and there is to be a gradient.
    """
    if layout.queries is not None:
        q = layout.queries.apply(q)
    if layout.keys is not None:
        k, v = layout.keys.apply(k), layout.keys.apply(v)
    key_mask = layout.key_mask
    common: dict[str, Any] = {"is_causal": layout.is_causal, "key_mask": key_mask, "scale": scale, "impl": impl}
    blocks: dict[str, Any] = {"block_m": config.block_m, "block_n": config.block_n}
    by_content = config.rearrange_method in ("SemanticAware", "Hybrid")

    def sparse(levels: Tensor | None) -> tuple[Tensor, Tensor]:
        if levels is None or by_content:  # clusters are others in each call, and so are the blocks
            return sparse_attention(
                q,
                k,
                v,
                config,
                grid=layout.grid if by_content else None,
                exempt_queries=layout.exempt_queries,
                exempt_keys=layout.exempt_keys,
                **common,
            )
        out = pyramid_attention(
            q, k, v, levels, **blocks, pool_correction=config.pool_correction, qk_dtype=config.qk_dtype, **common
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
        attended = reuse.attend(layer, q, sparse=sparse, dense=dense, nth=nth)
    else:
        share = 0.0 if layout.is_causal else config.probe if probe is None else probe
        attended = attend_once(q, sparse=sparse, dense=dense, probe=share, seed=probe_seed(step or 0, layer))
    densities = None
    if attended.levels is not None:
        seen = Blocks.of(q, k, config.block_m, config.block_n, layout.is_causal, key_mask)
        densities = read_density(attended.levels, seen)
    out = attended.out if layout.queries is None else layout.queries.restore(attended.out)
    return Answer(out, attended.way, _tally(attended, config, densities), attended.levels, densities, (q, k, v))


def _tally(attended: Attended, config: PSAConfig, densities: Tensor | None) -> Tally:
    estimate = attended.chosen * estimation_cost(config.importance, config.block_m, config.block_n)
    return Tally(
        density=(0.0 if densities is None else densities.mean()) + (attended.way == "refresh"),
        overhead=attended.probed / attended.out.shape[2] + estimate,
        error=None if attended.measured is None else attended.measured.mean(),
    )
