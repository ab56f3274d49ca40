"""The whole operator on one screen: order -> importance -> levels -> pyramid attention -> restore."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from psa_triton.attn_mask import as_key_mask
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl, resolve_impl
from psa_triton.inputs import (
    as_autocast,
    as_int,
    check_attention_inputs,
    check_causal,
    check_generator,
    check_key_mask,
    resolve_scale,
)
from psa_triton.kernels import attend_levels
from psa_triton.levels import LevelChoice, Thresholds, choose_levels, density
from psa_triton.ordering import TokenOrder, grid_order, semantic_order

_log = logging.getLogger(__name__)


def psa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: PSAConfig = PSAConfig(),  # noqa: B008 - frozen
    *,
    grid: tuple[int, int, int] | None = None,
    prefix_tokens: int = 0,
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

    As there, an empty batch or no queries give an empty result, and queries that see no key give zeros. It goes
    through `torch.compile`, `torch.export`, `torch.vmap` (without a generator) and gradients, `torch.func`'s included;
    there is no forward mode (`jvp`). Under `torch.autocast` it computes in autocast's dtype.

    Args:
        q: `[B, Hq, Nq, D]`, float32, bfloat16, float16 or float64, any strides; D a multiple of 8.
        k, v: `[B, Hkv, Nk, D]`, same dtype and device; query head `h` reads key head `h // (Hq // Hkv)`.
        config: blocks, levels, importance and token order.
        grid: frames, height and width of the visual tokens, which follow the prefix in raster order. If given and
            `config.use_rearrange`, tokens are reordered inside and restored in the output; without it they are taken as
            they come (only `SemanticAware` reorders without a grid).
        prefix_tokens: leading tokens, of text say, that keep their place, see every key and are seen by every query
            in full.
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
    _check_dropout(dropout_p)
    q, k, v = as_autocast(q, k, v)
    if attn_mask is not None:
        check_attention_inputs(q, k, v)
        check_key_mask(key_mask, k)
        keep = as_key_mask(attn_mask, q, k)
        key_mask = keep if key_mask is None else key_mask & keep
    out, levels = sparse_attention(
        q,
        k,
        v,
        config,
        grid=grid,
        prefix_tokens=prefix_tokens,
        is_causal=is_causal,
        key_mask=key_mask,
        scale=scale,
        impl=impl,
        generator=generator,
    )
    if config.verbose:
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
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """`psa_attention` with the levels that it chose.

    Returns:
        The output `[B, Hq, Nq, D]` and the levels of the reordered tokens, int8 `[B, Hq, nq, nk]`.
    """
    _check_config(config)
    q, k, v = as_autocast(q, k, v)
    check_attention_inputs(q, k, v)
    check_key_mask(key_mask, k)
    check_causal(is_causal)
    check_generator(generator)
    grid, prefix_tokens = _check_tokens(q, k, grid, prefix_tokens)
    if is_causal and config.attn_impl == "new_mask_type":
        raise ValueError("attn_impl: 'new_mask_type' has no causal mask; use attn_impl 'auto' or 'old_mask_type'")
    impl = resolve_impl(impl, q)
    scale = resolve_scale(scale, q.shape[-1])
    orders = token_orders(q, k, config, grid, prefix_tokens, key_mask)
    if orders is not None:
        if is_causal:
            raise ValueError(
                f"is_causal: a causal mask needs tokens in their own order, got rearrange_method "
                f"{config.rearrange_method!r}; use config.replace(use_rearrange=False)"
            )
        q, k, v = orders[0].apply(q), orders[1].apply(k), orders[1].apply(v)
        if key_mask is not None:
            # The same for all heads: an order by clusters puts what is left out behind the rest.
            of_heads = key_mask[:, None].expand(-1, k.shape[1], -1)
            key_mask = orders[1].apply(of_heads, dim=-1)[:, 0]
    choice = level_choice(config)
    with torch.no_grad():
        levels = choose_levels(
            q,
            k,
            choice,
            v=v,
            prefix_tokens=prefix_tokens,
            is_causal=is_causal,
            key_mask=key_mask,
            scale=scale,
            impl=impl,
            generator=generator,
        )
    out, _ = attend_levels(
        q,
        k,
        v,
        levels,
        block_m=config.block_m,
        block_n=config.block_n,
        coarsest=choice.coarsest,
        is_causal=is_causal,
        key_mask=key_mask,
        scale=scale,
        pool_correction=config.pool_correction,
        impl=impl,
    )
    return (out if orders is None else orders[0].restore(out)), levels


def level_choice(config: PSAConfig) -> LevelChoice:
    """What `config` says of the choice of levels."""
    thresholds = config.sim_thresholds
    return LevelChoice(
        block_m=config.block_m,
        block_n=config.block_n,
        mask_ratios=config.mask_ratios,
        mask_mode=config.mask_mode,
        min_full_ratio=config.min_full_ratio,
        importance=config.importance,
        sim_thresholds=Thresholds(thresholds.x2, thresholds.x4, thresholds.x8) if config.use_sim_mask else None,
        keep_first_block=config.keep_first_block,
        budget=config.budget,
        budget_scope=config.budget_scope,
    )


class PSAAttention(nn.Module):
    """`psa_attention` as a module without parameters: `PSAAttention(config)(q, k, v, grid=(t, h, w))`."""

    def __init__(self, config: PSAConfig = PSAConfig()) -> None:  # noqa: B008 - frozen
        super().__init__()
        if not isinstance(config, PSAConfig):
            raise TypeError(f"config: expected a PSAConfig, got {type(config).__name__}")
        self.config = config

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        grid: tuple[int, int, int] | None = None,
        prefix_tokens: int = 0,
        is_causal: bool = False,
        key_mask: Tensor | None = None,
        scale: float | None = None,
        impl: Impl = "auto",
        generator: torch.Generator | None = None,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        enable_gqa: bool = False,
    ) -> Tensor:
        """See `psa_attention`."""
        return psa_attention(
            q,
            k,
            v,
            self.config,
            grid=grid,
            prefix_tokens=prefix_tokens,
            is_causal=is_causal,
            key_mask=key_mask,
            scale=scale,
            impl=impl,
            generator=generator,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            enable_gqa=enable_gqa,
        )

    def extra_repr(self) -> str:
        """The config's main choices."""
        c = self.config
        return f"block_m={c.block_m}, block_n={c.block_n}, mask_mode={c.mask_mode!r}, mask_ratios={c.mask_ratios}"


def _check_dropout(dropout_p: float) -> None:
    if not isinstance(dropout_p, (int, float)) or isinstance(dropout_p, bool):
        raise TypeError(f"dropout_p: expected 0.0, got {dropout_p!r}")
    if dropout_p != 0:
        raise ValueError(f"dropout_p: expected 0.0, got {dropout_p}; pyramid attention has no dropout")


def _check_config(config: PSAConfig) -> None:
    if isinstance(config, PSAConfig):
        return
    if isinstance(config, Tensor):
        raise TypeError(
            "config: expected a PSAConfig as the fourth argument, got a tensor; if it is the mask that stands there in "
            "scaled_dot_product_attention, pass it by its name: attn_mask"
        )
    raise TypeError(f"config: expected a PSAConfig, got {type(config).__name__}; load_preset makes one from a preset")


def _check_tokens(
    q: Tensor, k: Tensor, grid: tuple[int, int, int] | None, prefix_tokens: int
) -> tuple[tuple[int, int, int] | None, int]:
    """`grid` and `prefix_tokens` as ints that fit the tokens."""
    prefix_tokens = as_int("prefix_tokens", prefix_tokens)
    if not 0 <= prefix_tokens <= min(q.shape[2], k.shape[2]):
        raise ValueError(
            f"prefix_tokens: expected 0 to {min(q.shape[2], k.shape[2])}, the number of tokens, got {prefix_tokens}"
        )
    if grid is None:
        return None, prefix_tokens
    message = f"grid: expected three positive ints (frames, height, width), got {grid!r}"
    try:
        sizes = [as_int("grid", size) for size in grid]
    except TypeError as error:
        raise TypeError(message) from error
    if len(sizes) != 3 or not all(size > 0 for size in sizes):
        raise ValueError(message)
    t, h, w = sizes
    total = t * h * w + prefix_tokens
    for name, x in (("q", q), ("k", k)):
        if total != x.shape[2]:
            mixed_up = "; its heads are as many: if it is [batch, tokens, heads, channels], pass transpose(1, 2)"
            raise ValueError(
                f"grid: expected frames * height * width + prefix_tokens = {x.shape[2]}, the tokens of {name}, "
                f"got {t} * {h} * {w} + {prefix_tokens} = {total}{mixed_up if total == x.shape[1] else ''}"
            )
    return (t, h, w), prefix_tokens


def token_orders(
    q: Tensor,
    k: Tensor,
    config: PSAConfig,
    grid: tuple[int, int, int] | None,
    prefix_tokens: int,
    key_mask: Tensor | None = None,
) -> tuple[TokenOrder, TokenOrder] | None:
    """The orders of queries and of keys, or None if tokens are taken as they come."""
    method = config.rearrange_method
    if not config.use_rearrange or (grid is None and method != "SemanticAware"):
        return None
    if method == "SemanticAware" or method == "Hybrid":
        return (
            semantic_order(q, method=method, grid=grid, prefix_tokens=prefix_tokens),
            semantic_order(k, method=method, grid=grid, prefix_tokens=prefix_tokens, keep=key_mask),
        )
    assert grid is not None
    order = grid_order(method, grid, tile_size=config.tile_size, prefix_tokens=prefix_tokens, device=q.device)
    return order, order
