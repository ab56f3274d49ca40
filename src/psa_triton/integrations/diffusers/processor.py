"""What the attention processors of all model families have in common."""

from __future__ import annotations

from typing import Any

import torch

from psa_triton.integrations.diffusers.state import ForwardState


class PSAProcessor:
    """An attention processor that runs PSA where the forward's state says so, else the processor it stands in for.

    Args:
        dense: the processor it stands in for.
        layer: index of the transformer block.
        state: of the transformer.
    """

    def __init__(self, dense: Any, layer: int, state: ForwardState) -> None:
        self.dense = dense
        self._layer = layer
        self._state = state

    # diffusers chooses an attention backend, and configures context parallelism, by these attributes of the processor
    # in place. It is the dense one that reads them. A dense processor without them keeps `hasattr` false here.
    @property
    def _attention_backend(self) -> Any:
        return self.dense._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.dense._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.dense._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.dense._parallel_config = config


def project_qkv(attn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of `x [B, N, C]` by the layer's projections, fused or not; `[B, N, H*D]` each."""
    if attn.fused_projections:
        query, key, value = attn.to_qkv(x).chunk(3, dim=-1)
        return query, key, value
    return attn.to_q(x), attn.to_k(x), attn.to_v(x)


def project_out(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """The layer's output projection and dropout of heads `x [B, H, N, D]`; `[B, N, C]`."""
    linear, dropout = attn.to_out
    return dropout(linear(x.transpose(1, 2).flatten(2, 3)))
