"""Importance: how much of a query block's attention falls on each key block, estimated at a fraction of its cost."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from psa_triton.blocks import Blocks, block_count, check_block_size
from psa_triton.impl import Impl, resolve_impl
from psa_triton.importance.estimators import ESTIMATORS, Estimate, Estimator
from psa_triton.importance.scoring import score_blocks
from psa_triton.inputs import check_attention_inputs, check_causal, check_generator, check_key_mask, resolve_scale
from psa_triton.operators import each_item, operator

__all__ = ["block_importance", "estimate_importance", "estimation_cost"]


@torch.no_grad()
def block_importance(
    q: Tensor,
    k: Tensor,
    *,
    block_m: int,
    block_n: int,
    method: str = "sampled",
    is_causal: bool = False,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Estimate how much each key block matters to each query block.

    Scores of a few query blocks exist at a time; beside them the estimators hold at most one copy of K (`sampled` a
    quarter, `finely_sampled` a half, `pooled` and `representative` an eighth). On a GPU no scores are written, but one
    number a key block for the query rows that are at work, and nothing but that eighth is copied; without a generator
    nothing waits for the device. The result is the same on every run for the same input, seed and implementation. A
    choice of blocks has no gradient, so none is recorded.

    NaN and inf in q or k never reach the result: a non-finite query counts as zeros, and a key block found to hold a
    non-finite key ranks first wherever it is visible, so attention reads it and shows what dense attention shows.

    Args:
        q: `[B, Hq, Nq, D]`, float32, bfloat16, float16 or float64.
        k: `[B, Hkv, Nk, D]`, same dtype and device; query head `h` reads key head `h // (Hq // Hkv)`.
        block_m: tokens per query block, a power of two of at least 8.
        block_n: tokens per key block, likewise.
        method: `sampled` (the paper's, for generation), `antidiagonal` (XAttention's, for understanding), `pooled`
            (the cheapest), `representative` (as cheap, and made for a budget) or `finely_sampled` (the dearest, with
            `antidiagonal`, and best on text).
        is_causal: query `i` sees key `j` iff `j <= i + Nk - Nq`.
        scale: of the logits, `D ** -0.5` by default.
        key_mask: bool `[B, Nk]`, False for keys that are left out, such as padding; None keeps all. Samples and means
            are those of kept keys, whatever the others hold; a block without a kept key has importance 0.
        generator: draws the sampled tokens at random (not `antidiagonal`); without it the choice is fixed. A generator
            of another device than q's makes the host wait.
        impl: `triton` (GPU kernels; blocks of up to 256 tokens, with `finely_sampled` 128), `reference` or `cpu` (the
            same torch code), or `auto`; see `resolve_impl`.

    Returns:
        float32 `[B, Hq, ceil(Nq / block_m), ceil(Nk / block_n)]`, at least 0. Rows sum to 1 over the visible key
        blocks; a row that sees no key is all zeros.

    Raises:
        TypeError: an argument of the wrong type, or dtypes or devices that differ.
        ValueError: shapes that do not fit, an unknown `method`, a `scale` that is not finite, a bad block size, or an
            `impl` that is unknown or cannot run here.
        ImportError: GPU kernels are wanted and Triton is missing or too old.
    """
    block_m, block_n = check_block_size("block_m", block_m), check_block_size("block_n", block_n)
    check_attention_inputs(q, k)
    check_key_mask(key_mask, k)
    check_causal(is_causal)
    check_generator(generator)
    _estimator(method)
    scale = resolve_scale(scale, q.shape[-1])
    blocks = Blocks.of(q, k, block_m, block_n, is_causal, key_mask)
    return estimate_importance(q, k, blocks, method, scale=scale, impl=resolve_impl(impl, q), generator=generator)


def estimate_importance(
    q: Tensor,
    k: Tensor,
    blocks: Blocks,
    method: str,
    *,
    scale: float,
    impl: Impl,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`block_importance` of arguments that are known to be right; an item of a batch gets what it would get alone.

    One operator in a graph. A graph cannot hold a generator: inside `torch.compile` and `torch.vmap` it must be None.
    """
    if generator is not None:
        return _estimate(q, k, blocks, _estimator(method), scale, impl, generator)
    return _importance(q, k, blocks.key_mask, method, blocks.m, blocks.n, blocks.is_causal, scale, impl)


def estimation_cost(method: str, block_m: int, block_n: int) -> float:
    """Multiply-adds of an estimator as a share of dense attention's (QK^T plus PV).

    Raises:
        ValueError: an unknown `method` or a bad block size.
    """
    check_block_size("block_m", block_m)
    check_block_size("block_n", block_n)
    return _estimator(method).cost(block_m)


def _fake(q, k, key_mask, method, block_m, block_n, *_others):
    blocks = block_count(q.shape[2], block_m), block_count(k.shape[2], block_n)
    return q.new_empty(*q.shape[:2], *blocks, dtype=torch.float32)


@operator("block_importance", _fake)
def _importance(
    q: Tensor,
    k: Tensor,
    key_mask: Tensor | None,
    method: str,
    block_m: int,
    block_n: int,
    is_causal: bool,
    scale: float,
    impl: str,
) -> Tensor:
    def of_item(q: Tensor, k: Tensor, key_mask: Tensor | None) -> Tensor:
        blocks = Blocks.of(q, k, block_m, block_n, is_causal, key_mask)
        return _estimate(q, k, blocks, _estimator(method), scale, cast(Impl, impl), None)

    # What a program of a GPU kernel computes depends on no other.
    return of_item(q, k, key_mask) if impl == "triton" else each_item(of_item, q, k, key_mask)


def _estimate(
    q: Tensor,
    k: Tensor,
    blocks: Blocks,
    estimator: Estimator,
    scale: float,
    impl: Impl,
    generator: torch.Generator | None,
) -> Tensor:
    if q.numel() == 0 or k.numel() == 0:
        return q.new_zeros(*q.shape[:2], blocks.rows, blocks.columns, dtype=torch.float32)
    rows = estimator.rows(blocks, q.device, generator)
    score = score_blocks
    if impl == "triton":
        from psa_triton.importance.scoring_triton import score_blocks as score
    return score(q, k, Estimate(*rows, estimator.reduce), blocks, scale)


def _estimator(method: str) -> Estimator:
    if method not in ESTIMATORS:
        raise ValueError(f"method: expected one of {', '.join(ESTIMATORS)}, got {method!r}")
    return ESTIMATORS[method]
