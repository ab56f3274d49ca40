"""Pyramid attention on a GPU, with nothing that waits for the device.

pool K and V (levels from 2 on) -> list what each query block reads -> attend

Back, where nothing but inputs and results was kept: the same again for the gradient of queries -> list what reads each
key block -> the gradient of keys and values, level by level
"""

from __future__ import annotations

from torch import Tensor

from psa_triton.blocks import Blocks
from psa_triton.kernels.reading import Reading
from psa_triton.kernels.triton.backward_kv import key_value_gradient, list_readers
from psa_triton.kernels.triton.backward_q import Results, query_gradient
from psa_triton.kernels.triton.forward import attend
from psa_triton.kernels.triton.operands import pooled_operands
from psa_triton.kernels.triton.schedule import list_blocks


def pyramid_attention(
    q: Tensor, k: Tensor, v: Tensor, levels: Tensor, blocks: Blocks, reading: Reading
) -> tuple[Tensor, Tensor]:
    """The definition of `kernels/reference.py` on a GPU.

    Returns:
        The output, shape, dtype and strides of `q`, and the log-sum-exp, float32 `[B, Hq, Nq]`.
    """
    lists = list_blocks(levels, reading.coarsest.bit_length(), blocks)
    return attend(pooled_operands(q, k, v, blocks, reading), lists, blocks, reading.scale)


def pyramid_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    levels: Tensor,
    blocks: Blocks,
    reading: Reading,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `q`, `k` and `v`, the same bits on every run. Queries that see nothing have and give none.

    Args:
        grad_out: gradient of the output, `[B, Hq, Nq, D]`, dtype of q, any strides.
        grad_lse: gradient of the log-sum-exp, float32 `[B, Hq, Nq]`; None if nothing depends on it.
        out, lse: the results of `pyramid_attention`.
        q, k, v, levels, blocks, reading: as for `pyramid_attention`.

    Returns:
        The gradients, each with shape and dtype of its tensor, contiguous.
    """
    shifts = reading.coarsest.bit_length()
    lists = list_blocks(levels, shifts, blocks)
    operands = pooled_operands(q, k, v, blocks, reading)
    results = Results(out, lse.contiguous(), grad_out, None if grad_lse is None else grad_lse.contiguous())
    grad_q, terms = query_gradient(operands, results, lists, blocks, reading.scale)
    if (kept := blocks.kept()) is not None:
        levels = levels.masked_fill((kept == 0)[:, None, None], 0)
    readers = list_readers(levels, k.shape[1], shifts)
    return grad_q, *key_value_gradient(operands, results, terms, readers, blocks, reading.scale)
