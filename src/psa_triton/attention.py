"""The whole operator on one screen: order -> importance -> levels -> attend, which pools -> restore."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from psa_triton import inputs
from psa_triton.attn_mask import as_key_mask
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.exempt import Exempt, find_sides
from psa_triton.impl import Impl, resolve_impl
from psa_triton.importance import estimate_importance
from psa_triton.kernels import Reading, attend
from psa_triton.levels import choose_levels, coarsest_level, density
from psa_triton.ordering import token_orders

_log = logging.getLogger(__name__)


def psa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: PSAConfig = PSAConfig(),  # noqa: B008 - frozen
    *,
    grid: tuple[int, int, int] | None = None,
    prefix_tokens: int = 0,
    exempt: Exempt = (),
    exempt_keys: Exempt = (),
    exempt_queries: Exempt = (),
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
    generator: torch.Generator | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
) -> Tensor:
    """Pyramid sparse attention, a drop-in for scaled dot-product attention (arXiv 2512.04025).

    As there, an empty batch or no queries give an empty result, and queries that see no key give zeros. It goes through
    `torch.compile`, `torch.export`, `torch.vmap` (without a generator) and gradients, `torch.func`'s included; there is
    no forward mode (`jvp`). Under `torch.autocast` it computes in autocast's dtype.

    Args:
        q: `[B, Hq, Nq, D]`, float32, bfloat16, float16 or float64, any strides; D a multiple of 8.
        k, v: `[B, Hkv, Nk, D]`, same dtype and device; query head `h` reads key head `h // (Hq // Hkv)`.
        config: blocks, levels, importance and token order.
        grid: frames, height and width of the visual tokens, in raster order: those that are not exempt. If given and
            `config.use_rearrange`, tokens are reordered inside and restored in the output; without it they are taken as
            they come (only `SemanticAware` reorders without a grid). If there are more keys than queries, the grid's
            are the last of those that are left, and keys before these are exempt.
        prefix_tokens: leading tokens that are exempt: the same as `exempt=[(0, prefix_tokens)]`.
        exempt: tokens that every query reads in full and that read everything in full, wherever they stand: text,
            audio, reference images. Ranges [(start, stop), ...], or positions in an int64 tensor, which are looked at
            on the host. Reordered, these come first; else blocks that touch one of them are read in full.
        exempt_keys: tokens that are read so, and read like any other: attention sinks. They have no place in the grid.
        exempt_queries: tokens that read so, and are read like any other; likewise.
        is_causal: query `i` sees keys up to `i + Nk - Nq`. Cannot be used with a reorder.
        key_mask: bool `[B, Nk]`, False for keys that are left out, such as padding, wherever it stands; None keeps all.
            A key left out is as if it were not there, whatever it and its value hold, and gets no gradient; blocks are
            cut by position as ever, and a row that sees no key gives zeros.
        scale: factor of the logits, `D ** -0.5` by default.
        impl: `auto`, `reference`, `torch`, `cpu` or `triton`; see `pyramid_attention`.
        generator: randomises the sampling of the importance estimate; without it the result is the same every time.
        attn_mask, dropout_p, enable_gqa: what `scaled_dot_product_attention` takes. A mask, bool or added to the logits
            (0, or -inf or at most -1e4), that leaves out the same keys for every head and query becomes a `key_mask`;
            it is looked at, which waits for the device. There are no other masks but `is_causal`, and no dropout;
            grouped heads need no leave.

    Returns:
        `[B, Hq, Nq, D]`, dtype of q.

    Raises:
        TypeError: an argument of the wrong type, or dtypes or devices that differ.
        ValueError: shapes that do not fit, heads and tokens that look mixed up, a grid that does not match the tokens,
            a reorder with a causal mask, a mask or dropout, or a limit of `config.attn_impl`.
    """
    inputs.check_dropout(dropout_p)
    q, k, v = inputs.as_autocast(q, k, v)
    if attn_mask is not None:
        inputs.check_attention_inputs(q, k, v)
        inputs.check_key_mask(key_mask, k)
        keep = as_key_mask(attn_mask, q, k)
        key_mask = keep if key_mask is None else key_mask & keep
    out, levels = sparse_attention(
        q,
        k,
        v,
        config,
        grid=grid,
        prefix_tokens=prefix_tokens,
        exempt=exempt,
        exempt_keys=exempt_keys,
        exempt_queries=exempt_queries,
        is_causal=is_causal,
        key_mask=key_mask,
        scale=scale,
        impl=impl,
        generator=generator,
    )
    if config.verbose and not torch.compiler.is_compiling():
        _log.info("%d queries, %d keys: density %.3f", q.shape[2], k.shape[2], density(levels).mean())
    return out


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: PSAConfig,
    *,
    grid: tuple[int, int, int] | None = None,
    prefix_tokens: int = 0,
    exempt: Exempt = (),
    exempt_keys: Exempt = (),
    exempt_queries: Exempt = (),
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """`psa_attention` with the levels that it chose, those of the reordered tokens: int8 `[B, Hq, nq, nk]`."""
    inputs.check_config(config)
    q, k, v = inputs.as_autocast(q, k, v)
    inputs.check_attention_inputs(q, k, v)
    inputs.check_key_mask(key_mask, k)
    inputs.check_causal(is_causal, config)
    inputs.check_generator(generator)
    grid, queries, keys = find_sides(q.shape[2], k.shape[2], grid, prefix_tokens, exempt, exempt_keys, exempt_queries)
    scale, impl = inputs.resolve_scale(scale, q.shape[-1]), resolve_impl(impl, q)

    orders = token_orders(q, k, config, grid, queries, keys, is_causal, key_mask)
    places = queries.exempt, keys.exempt
    if orders is not None:
        q, k, v, key_mask = orders[0].apply(q), orders[1].apply(k), orders[1].apply(v), orders[1].apply_mask(key_mask)
        places = queries.front, keys.front
    blocks = Blocks.of(q, k, config.block_m, config.block_n, is_causal, key_mask, *places)
    with torch.no_grad():
        importance = estimate_importance(q, k, blocks, config.importance, scale=scale, impl=impl, generator=generator)
        levels = choose_levels(importance, q, k, v, blocks, config, scale=scale, impl=impl)
    reading = Reading(scale, config.pool_correction, coarsest_level(config), config.qk_dtype, impl)
    out, _ = attend(q, k, v, levels, blocks, reading)
    return (out if orders is None else orders[0].restore(out)), levels


class PSAAttention(nn.Module):
    """`psa_attention` as a module without parameters: `PSAAttention(config)(q, k, v, grid=(t, h, w))`."""

    def __init__(self, config: PSAConfig = PSAConfig()) -> None:  # noqa: B008 - frozen
        super().__init__()
        inputs.check_config(config)
        self.config = config

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
        """`psa_attention`, which says what else may be given by name."""
        return psa_attention(q, k, v, self.config, **arguments)

    def extra_repr(self) -> str:
        """The config's main choices."""
        c = self.config
        return f"block_m={c.block_m}, block_n={c.block_n}, mask_mode={c.mask_mode!r}, mask_ratios={c.mask_ratios}"
