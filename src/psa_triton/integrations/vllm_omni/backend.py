"""The attention backend as vLLM-Omni 0.30 asks for it. Imported by vLLM-Omni, once it is chosen."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from vllm_omni.diffusion.attention.backends.abstract import AttentionBackend, AttentionImpl, AttentionMetadata
from vllm_omni.diffusion.attention.selector import get_attn_backend_for_role
from vllm_omni.diffusion.config import get_current_diffusion_config_or_none
from vllm_omni.diffusion.forward_context import get_forward_context, is_forward_context_available

from psa_triton.integrations.attend import Grid
from psa_triton.integrations.serving import ServedAttention, served_config


class PSABackend(AttentionBackend):
    """What vLLM-Omni finds in the registry."""

    accept_output_buffer = True
    supports_prefix_kv_slicing = True

    @classmethod
    def supports_attention_mask(cls, attention_spec: object | None = None) -> bool:
        """Yes: calls with a mask run dense."""
        return True

    @staticmethod
    def get_name() -> str:
        return "RAINFUSION_ATTN"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        return PSAImpl

    @staticmethod
    def get_supported_head_sizes() -> list[int]:
        """Any."""
        return []


class PSAImpl(AttentionImpl):
    """The attention of one layer: PSA where the model tells its grid, the platform's own attention elsewhere.

    Args:
        num_heads, head_size, softmax_scale, causal, num_kv_heads, prefix, qkv_layout: of the layer.
        backend_kwargs: what `block_sparse` of the configuration says.
        extra: what else vLLM-Omni hands over.

    Raises:
        ValueError: an option that PSA does not have, or sequences shared between processes other than by heads.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        softmax_scale: float,
        causal: bool = False,
        num_kv_heads: int | None = None,
        prefix: str = "",
        qkv_layout: str | None = None,
        backend_kwargs: dict[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        options = backend_kwargs or {}
        _check_parallel()
        if options.get("precision", "bf16") != "bf16":
            raise ValueError(f"block_sparse.precision: expected bf16, got {options['precision']!r}")
        self._scale = softmax_scale
        self._never = "causal" if causal else None if qkv_layout == "BSND" else f"layout {qkv_layout}"
        self._layer = next((int(part) for part in prefix.split(".") if part.isdecimal()), 0)
        self._psa = _shared(
            options.get("sparsity", 0.8),
            options.get("start_step", 0),
            options.get("end_step", 0),
            frozenset(options.get("skip_layers") or ()),
        )
        default, _ = get_attn_backend_for_role(role=extra.get("role", "self"), head_size=head_size)
        self._dense = default.get_impl_cls()(
            num_heads=num_heads,
            head_size=head_size,
            softmax_scale=softmax_scale,
            causal=causal,
            num_kv_heads=num_kv_heads,
            prefix=prefix,
            qkv_layout=qkv_layout,
        )

    @torch.compiler.disable
    def forward_cuda(
        self, query: Tensor, key: Tensor, value: Tensor, attn_metadata: AttentionMetadata | None = None
    ) -> Tensor:
        """Attention of one call, also on ROCm.

        Args:
            query, key, value: `[B, N, H, D]`, of all tokens and, with Ulysses, this process's heads.
            attn_metadata: masks, and the grid of the video.

        Returns:
            `[B, N, H, D]`; rows of padding behind the video hold anything.
        """
        grid, prefix_tokens, used = _video(attn_metadata)
        context = get_forward_context() if is_forward_context_available() else None
        out = self._psa.attend(
            *(x[:, :used].transpose(1, 2) for x in (query, key, value)),
            layer=self._layer,
            grid=grid,
            prefix_tokens=prefix_tokens,
            reason=self._never or _reason(attn_metadata, used),
            step=getattr(context, "denoise_step_idx", None),
            steps=getattr(context, "total_denoise_steps", None),
            scale=self._scale,
        )
        if out is None:
            return self._dense.forward(query, key, value, attn_metadata)
        return torch.cat([out.transpose(1, 2), query[:, out.shape[2] :]], dim=1)


@lru_cache
def _shared(sparsity: float, start_step: int, end_step: int, skip_layers: frozenset[int]) -> ServedAttention:
    """The attention of all layers with these options: `sparsity` says the density of presets that have a budget."""
    config = served_config()
    if config is not None:
        changes = {"budget": 1.0 - sparsity} if config.mask_mode == "budget" else {}
        config = config.replace(warmup_steps=start_step, **changes)
    return ServedAttention(config, layers=skip_layers, last_steps=end_step)


def _check_parallel() -> None:
    parallel = getattr(get_current_diffusion_config_or_none(), "parallel_config", None)
    for name, what in (("allgather_degree", "all-gathers keys"), ("ring_degree", "passes keys around")):
        if (degree := getattr(parallel, name, 1)) > 1:
            raise ValueError(
                f"{name}: expected 1 with PSA, which chooses among all keys of a head, got {degree}, which {what}; use "
                "ulysses_degree"
            )


def _video(metadata: AttentionMetadata | None) -> tuple[Grid | None, int, int | None]:
    """Grid of the video, tokens in front of it, and where it ends; (None, 0, None) where it is not told."""
    layout = None if metadata is None else metadata.video_layout
    if layout is None:
        return None, 0, None
    target = next((span for span in layout.video_spans if span.role == "target"), None)
    grid, start = (layout.latent_grid, layout.prefix_len) if target is None else (target.latent_grid, target.start)
    if grid is None or start is None:
        return None, 0, None
    return tuple(grid), start, start + prod(grid)


def _reason(metadata: AttentionMetadata | None, used: int | None) -> str | None:
    """Why a call runs dense for what else its metadata says."""
    if metadata is None or metadata.video_layout is None:
        return None
    if metadata.attn_mask is not None or metadata.full_attn_spans is not None:
        return "attention mask"
    told = metadata.video_layout.used_len
    ends = metadata.extra.get("max_seqlen_q", used if told is None else told)
    return None if ends == used else "other tokens behind the video"
