"""PSA in LightX2V: an attention that its configuration can name. Imports LightX2V when LightX2V asks for it."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from psa_triton.integrations.serving import ServedAttention, served_config

NAME: Final = "psa"
"""What `self_attn_1_type` says."""
DENSE: Final = "torch_sdpa"
"""LightX2V's attention for what runs dense."""

_shared = cache(lambda: ServedAttention(served_config()))


def register() -> None:
    """Entry point `lightx2v.platform_plugins`: makes `psa` known. Again is fine."""
    from lightx2v_platform.registry_factory import PLATFORM_ATTN_WEIGHT_REGISTER

    PLATFORM_ATTN_WEIGHT_REGISTER[NAME] = lambda: _weight_class()()


@cache
def _weight_class() -> type[Any]:
    """The attention of one layer: LightX2V's own for what runs dense, with another way through `apply`."""
    from lightx2v.utils.registry_factory import ATTN_WEIGHT_REGISTER

    dense: Any = ATTN_WEIGHT_REGISTER[DENSE]

    class PSAWeight(dense):
        def apply(self, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> Tensor:
            out = attend(q, k, v, **call)
            return super().apply(q, k, v, **call) if out is None else out

    return PSAWeight


@torch.compiler.disable
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_idx: int | None = None,
    scheduler: Any = None,
    grid_sizes: Any = None,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    drop_rate: float = 0.0,
    softmax_scale: float | None = None,
    **_: Any,
) -> Tensor | None:
    """One call of LightX2V, if it is to be sparse.

    Args:
        q, k, v: `[N, H, D]`, of one sequence.
        block_idx: the layer; some models of LightX2V tell none, and run dense.
        scheduler: tells the step.
        grid_sizes: frames, height and width of the video, or an object that has them as its `tuple`.
        attn_mask, causal, drop_rate: run dense if there are any.
        softmax_scale: of the logits.

    Returns:
        `[N, H * D]`, or None.
    """
    if q.ndim != 3:
        return None
    grid = getattr(grid_sizes, "tuple", grid_sizes)
    out = _shared().attend(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        layer=block_idx,
        grid=None if grid is None else tuple(int(size) for size in grid),
        reason="attention mask, causal or dropout" if attn_mask is not None or causal or drop_rate else None,
        step=getattr(scheduler, "step_index", None),
        steps=getattr(scheduler, "infer_steps", None),
        scale=softmax_scale,
    )
    return None if out is None else out[0].transpose(0, 1).flatten(1)
