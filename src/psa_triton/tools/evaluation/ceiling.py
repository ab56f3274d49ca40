"""Dense attention a second time, computed otherwise: how far dense is from itself bounds what PSA can be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from psa_triton.integrations.diffusers import transformers_of

CeilingKind = Literal["auto", "backend", "dtype", "none"]


@dataclass(frozen=True)
class Ceiling:
    """How dense attention is computed the second time.

    Attributes:
        kind: `backend`, by another implementation; `dtype`, in numbers of another precision.
        device: type of the device.
        dtype: of the transformer's weights.
    """

    kind: Literal["backend", "dtype"]
    device: str
    dtype: torch.dtype

    @property
    def label(self) -> str:
        """In a few words, such as `dense in bfloat16`."""
        if self.kind == "backend":
            return f"dense by SDPA's {self._backend.name.lower().replace('_', ' ')} backend"
        return f"dense in {str(self._other_dtype).removeprefix('torch.')}"

    def entered(self, pipe: Any) -> AbstractContextManager[None]:
        """While it is entered, `pipe` computes that way; after it, as before."""
        if self.kind == "backend":
            return sdpa_kernel(self._backend)
        return _transformers_in(pipe, self._other_dtype)

    @property
    def _backend(self) -> SDPBackend:
        # torch's first choice is flash attention, which has no float32 on a GPU: there efficient attention comes first.
        if self.device == "cuda" and self.dtype != torch.float32:
            return SDPBackend.EFFICIENT_ATTENTION
        return SDPBackend.MATH

    @property
    def _other_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == torch.float32 else torch.float32


def choose_ceiling(kind: CeilingKind, device: torch.device, dtype: torch.dtype) -> Ceiling | None:
    """The second dense run.

    Args:
        kind: `auto` takes another backend where there are several that scale (a GPU's, for 16-bit numbers), else
            another precision.
        device: of the run.
        dtype: of the transformer's weights.
    """
    if kind == "none":
        return None
    if kind == "auto":
        kind = "backend" if device.type == "cuda" and dtype != torch.float32 else "dtype"
    return Ceiling(kind, device.type, dtype)


@contextmanager
def _transformers_in(pipe: Any, dtype: torch.dtype) -> Iterator[None]:
    """The transformers' weights in `dtype`, and then as they were: their own tensors are kept meanwhile."""
    own: dict[torch.nn.Parameter, torch.Tensor] = {}
    for transformer in transformers_of(pipe).values():
        # What stays in float32 however the model is loaded; diffusers has no public way to ask.
        kept = tuple(transformer._keep_in_fp32_modules or ())
        for name, parameter in transformer.named_parameters():
            if not any(part in kept for part in name.split(".")):
                own[parameter] = parameter.data
    try:
        for parameter, values in own.items():
            parameter.data = values.to(dtype)
        yield
    finally:
        for parameter, values in own.items():
            parameter.data = values
