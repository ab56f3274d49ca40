"""Pyramid attention on a GPU, with nothing that waits for the device.

pool K and V (levels from 2 on) -> list what each query block reads -> attend

Back, where nothing but inputs and results was kept: the same again for the gradient of queries -> list what reads each
key block -> the gradient of keys and values, level by level
"""

from __future__ import annotations

from torch import Tensor

from psa_triton.kept import kept_count
from psa_triton.kernels.triton.backward import Attended
from psa_triton.kernels.triton.backward_kv import key_value_gradient, list_readers
from psa_triton.kernels.triton.backward_q import query_gradient
from psa_triton.kernels.triton.forward import attend
from psa_triton.kernels.triton.schedule import Frontier, list_blocks
from psa_triton.pyramid.triton_kernels import KeptRows, empty_kept_rows, pool, pool_with_spread, write_kept_rows
from psa_triton.ratios import COARSEST_LEVEL


def pyramid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    levels: Tensor,
    *,
    block_m: int,
    block_n: int,
    is_causal: bool,
    scale: float,
    pool_correction: str = "none",
    key_mask: Tensor | None = None,
    coarsest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `kernels/reference.py` on a GPU. Same arguments and results.

    Args:
        coarsest: no level is coarser than this; what it does not name is not pooled. By default any level may come.

    Returns:
        The output, shape, dtype and strides of `q`, and the log-sum-exp, float32 `[B, Hq, Nq]`.
    """
    coarsest = min(block_n, COARSEST_LEVEL) if coarsest is None else coarsest
    kept, counts = _keep(key_mask, block_n, coarsest)
    frontier = Frontier(block_m, block_n, q.shape[2], k.shape[2], is_causal, counts)
    lists = list_blocks(levels, coarsest.bit_length(), frontier)
    pooled_k, spread = _pool_keys(k, block_n, coarsest, pool_correction, kept)
    return attend(
        q,
        k,
        v,
        pooled_k,
        _pool(v, block_n, coarsest, kept),
        spread,
        kept,
        lists,
        block_m=block_m,
        block_n=block_n,
        is_causal=is_causal,
        scale=scale,
    )


def pyramid_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    levels: Tensor,
    *,
    block_m: int,
    block_n: int,
    is_causal: bool,
    scale: float,
    pool_correction: str = "none",
    key_mask: Tensor | None = None,
    coarsest: int | None = None,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `q`, `k` and `v`, the same bits on every run. Queries that see nothing have and give none.

    Args:
        grad_out: gradient of the output, `[B, Hq, Nq, D]`, dtype of q, any strides.
        q, k, v, levels, block_m, block_n, is_causal, scale, pool_correction, key_mask, coarsest: as for
            `pyramid_attention`.
        out, lse: its results.
        grad_lse: gradient of the log-sum-exp, float32 `[B, Hq, Nq]`; None if nothing depends on it.

    Returns:
        The gradients, each with shape and dtype of its tensor, contiguous.
    """
    coarsest = min(block_n, COARSEST_LEVEL) if coarsest is None else coarsest
    shifts = coarsest.bit_length()
    kept, counts = _keep(key_mask, block_n, coarsest)
    lists = list_blocks(levels, shifts, Frontier(block_m, block_n, q.shape[2], k.shape[2], is_causal, counts))
    pooled_k, spread = _pool_keys(k, block_n, coarsest, pool_correction, kept)
    attended = Attended(
        q=q,
        k=k,
        v=v,
        pooled_k=pooled_k,
        pooled_v=_pool(v, block_n, coarsest, kept),
        spread=spread,
        kept=kept,
        out=out,
        lse=lse.contiguous(),
        grad_out=grad_out,
        grad_lse=None if grad_lse is None else grad_lse.contiguous(),
        block_m=block_m,
        block_n=block_n,
        is_causal=is_causal,
        scale=scale,
    )
    grad_q, terms = query_gradient(attended, lists)
    if counts is not None:
        levels = levels.masked_fill((counts == 0)[:, None, None], 0)
    return grad_q, *key_value_gradient(attended, terms, list_readers(levels, k.shape[1], shifts))


def _keep(key_mask: Tensor | None, block_n: int, coarsest: int) -> tuple[KeptRows | None, Tensor | None]:
    """What a key mask leaves of tokens and pooled rows, and how many tokens of each block, int32 `[B, nk]`."""
    if key_mask is None:
        return None, None
    kept = empty_kept_rows(key_mask, block_n, coarsest)
    if coarsest > 1:
        write_kept_rows(kept, block_n=block_n, coarsest=coarsest)
    return kept, kept_count(key_mask, block_n).int()


def _pool_keys(
    k: Tensor, block_n: int, coarsest: int, pool_correction: str, kept: KeptRows | None
) -> tuple[Tensor, Tensor | None]:
    """`_pool`, and the spread of its rows if logits are corrected by it."""
    if pool_correction == "none" or coarsest == 1:
        return _pool(k, block_n, coarsest, kept), None
    return pool_with_spread(k, block_n=block_n, coarsest=coarsest, keep=None if kept is None else kept.keep)


def _pool(x: Tensor, block_n: int, coarsest: int, kept: KeptRows | None) -> Tensor:
    """The levels from 2 on; `x` itself, which no kernel reads as such, if there are none."""
    return pool(x, block_n=block_n, coarsest=coarsest, keep=None if kept is None else kept.keep) if coarsest > 1 else x
