"""Pyramid attention for given levels, by one of several implementations of the same definition."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from psa_triton.blocks import Blocks, check_block_size
from psa_triton.impl import Impl, resolve_impl
from psa_triton.inputs import check_attention_inputs, check_causal, check_key_mask, resolve_scale
from psa_triton.kernels import ops, reference
from psa_triton.kernels.mean_key import common_logit, mean_key, shifted
from psa_triton.kernels.reading import Reading
from psa_triton.operators import without_autocast
from psa_triton.ratios import COARSEST_LEVEL

POOL_CORRECTIONS: Final = ("none", "isotropic")
"""What may be added to the logits of pooled groups."""
QK_DTYPES: Final = ("auto", "int8")
"""What queries and keys are multiplied in."""


def pyramid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    levels: Tensor,
    *,
    block_m: int,
    block_n: int,
    is_causal: bool = False,
    scale: float | None = None,
    pool_correction: str = "none",
    key_mask: Tensor | None = None,
    qk_dtype: str = "auto",
    impl: Impl = "auto",
    return_lse: bool = False,
) -> Any:
    """Attention that reads each key block at the resolution that `levels` gives it (arXiv 2512.04025, section 3).

    A key block at level `l` is read as the means of groups of `l` neighbouring tokens, each weighted by its number of
    tokens; at level 0 it is skipped. A row whose levels are all 0 gives zeros and a log-sum-exp of -inf. Products are
    accumulated in float32 (float64 for float64). NaN and inf spoil the rows that see them and no others.

    Args:
        q: `[B, Hq, Nq, D]`, float32, bfloat16, float16 or float64, any strides; D a multiple of 8.
        k, v: `[B, Hkv, Nk, D]`, same dtype and device; query head `h` reads key head `h // (Hq // Hkv)`.
        levels: int8 `[B, Hq, ceil(Nq / block_m), ceil(Nk / block_n)]`: 0, 1, 2, 4, ... at most `block_n` and 64.
        block_m: tokens of a query block, a power of two of at least 8.
        block_n: tokens of a key block, likewise.
        is_causal: query `i` sees a group if the group's last kept token is at most `i + Nk - Nq`.
        scale: factor of the logits, `D ** -0.5` by default.
        pool_correction: what makes up for the weight that groups lose by pooling (the mean of exponentials is larger
            than the exponential of the mean). `isotropic` adds `scale ** 2 / 2 * |q| ** 2 * spread` to the logits of
            levels 2, 4 and 8, where `spread = sum(|k - mean(k)| ** 2) / (count * D)` over the tokens of the group;
            `none` adds nothing. Coarser levels are never corrected: see docs/kernels.md.
        key_mask: bool `[B, Nk]`, False for keys that are left out, such as padding, wherever it stands; None keeps all.
            A key left out is as if it were not there, whatever it and its value hold: blocks and groups are cut by
            position as ever, and a group is the mean of its kept tokens and counts them; one without any is not read.
            Gradients of keys and values left out are zeros.
        qk_dtype: `int8` multiplies queries and keys in 8 bits: less the mean key, each query and each group's mean is
            rounded to multiples of a 127th of its largest number. It has no gradient. `auto`: in the dtype of q.
        impl: `reference` (any device, slow), `cpu`, `triton` (CUDA and ROCm), or `auto`, the fastest that can run. All
            are differentiable. All but `triton` compute in float64.
        return_lse: also return the log-sum-exp of the logits.

    Returns:
        The output, shape and dtype of q; with `return_lse` also the log-sum-exp, float32 `[B, Hq, Nq]` (float64 for
        float64).

    Raises:
        TypeError: an argument of the wrong type, or dtypes or devices that differ.
        ValueError: shapes that do not fit, an unknown level, or an implementation that cannot run here and why.
        ImportError: the GPU kernels are wanted and Triton is missing or too old.

    Looking for unknown levels waits for the device; while a CUDA graph is captured, or `torch.compile` traces, levels
    are taken on trust, and unknown ones are not read.
    """
    check_attention_inputs(q, k, v)
    block_m, block_n = check_block_size("block_m", block_m), check_block_size("block_n", block_n)
    check_causal(is_causal)
    if pool_correction not in POOL_CORRECTIONS:
        raise ValueError(f"pool_correction: expected one of {', '.join(POOL_CORRECTIONS)}, got {pool_correction!r}")
    check_key_mask(key_mask, k)
    if qk_dtype not in QK_DTYPES:
        raise ValueError(f"qk_dtype: expected one of {', '.join(QK_DTYPES)}, got {qk_dtype!r}")
    blocks = Blocks.of(q, k, block_m, block_n, is_causal, key_mask)
    _check_levels(levels, q, blocks)
    scale, coarsest = resolve_scale(scale, q.shape[-1]), min(block_n, COARSEST_LEVEL)
    reading = Reading(scale, pool_correction, coarsest, qk_dtype, resolve_impl(impl, q))
    if not (torch.compiler.is_compiling() or (q.is_cuda and torch.cuda.is_current_stream_capturing())):
        ops.check_levels(levels, reading.coarsest)
    out, lse = attend(q, k, v, levels, blocks, reading, want_lse=return_lse)
    return out if lse is None else (out, lse)


def attend(
    q: Tensor, k: Tensor, v: Tensor, levels: Tensor, blocks: Blocks, reading: Reading, *, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`pyramid_attention` of arguments that are known to be right, and the log-sum-exp if it is wanted.

    Keys and values are pooled on the way, by each implementation as suits it: one key head's pyramid exists at a time
    on a CPU, those of all heads on a GPU.
    """
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if reading.qk_dtype == "int8" and needs_grad:
        raise ValueError("qk_dtype: expected auto where a gradient is wanted, as rounding has none, got int8")
    mean = None
    if reading.qk_dtype == "int8":
        mean = mean_key(k.detach(), blocks.key_mask)
        k = k - mean
    if reading.impl == "reference":
        with without_autocast(q):
            out, lse = reference.pyramid_attention(q, k, v, levels, blocks, reading)
    else:
        # A graph knows the operator's own gradient, `torch.func` the function's.
        attend = ops.attend if torch.compiler.is_compiling() else ops.Attend.apply
        how = (reading.scale, reading.pool_correction, reading.coarsest, reading.qk_dtype, reading.impl)
        out, lse = attend(
            q, k, v, levels, blocks.key_mask, blocks.m, blocks.n, blocks.is_causal, *how, want_lse or needs_grad
        )
    if not want_lse:
        return out, None
    if mean is not None:
        with without_autocast(q):
            lse = shifted(lse, common_logit(q, mean, reading.scale))
    return out, lse


def _check_levels(levels: Tensor, q: Tensor, blocks: Blocks) -> None:
    if not isinstance(levels, Tensor):
        raise TypeError(f"levels: expected a tensor, got {type(levels).__name__}")
    if levels.dtype != torch.int8:
        raise TypeError(f"levels: expected int8, got {levels.dtype}; convert with .to(torch.int8)")
    if levels.device != q.device:
        raise ValueError(f"levels: expected the device of q, {q.device}, got {levels.device}")
    shape = (*q.shape[:2], blocks.rows, blocks.columns)
    if levels.shape != shape:
        raise ValueError(
            f"levels: expected [batch, query heads, query blocks, key blocks] = {shape}, got {tuple(levels.shape)}"
        )
