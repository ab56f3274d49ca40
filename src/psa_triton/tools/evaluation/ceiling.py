"""Dense attention a second time, computed otherwise: how far dense is from itself bounds what PSA can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from psa_triton.integrations.diffusers import transformers_of
from psa_triton.products import multiplies

CeilingKind = Literal["auto", "backend", "dtype", "none"]


class Ceiling(NamedTuple):
    """How dense attention is computed the second time."""

    label: str
    """In a few words, such as `dense in bfloat16`."""
    entered: Callable[[Any], AbstractContextManager[None]]
    """While it is entered with a pipeline, that computes so; after it, as before."""


def choose_ceiling(kind: CeilingKind, device: torch.device, dtype: torch.dtype) -> Ceiling | None:
    """The second dense run.

    Args:
        kind: `backend` is another implementation, `dtype` another precision; `auto` takes another backend where there
            are several that scale (a GPU's, for 16-bit numbers), else another precision; of the weights alone on a CPU
            without products in it, where the second run would take three times as long as the first.
        device: of the run.
        dtype: of the transformer's weights.
    """
    if kind == "none":
        return None
    # torch's first choice is flash attention, which has no float32 on a GPU: there efficient attention comes first.
    several = device.type == "cuda" and dtype != torch.float32
    if kind == "backend" or (kind == "auto" and several):
        backend = SDPBackend.EFFICIENT_ATTENTION if several else SDPBackend.MATH
        name = backend.name.lower().replace("_", " ")
        return Ceiling(f"dense by SDPA's {name} backend", lambda _: sdpa_kernel(backend))
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    name = str(other).removeprefix("torch.")
    if kind == "auto" and device.type == "cpu" and not multiplies(other):
        return Ceiling(
            f"dense with weights rounded to {name}",
            lambda pipe: _other_weights(pipe, lambda values: values.to(other).to(values.dtype)),
        )
    return Ceiling(f"dense in {name}", lambda pipe: _other_weights(pipe, lambda values: values.to(other)))


@contextmanager
def _other_weights(pipe: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The transformers' weights changed, and then as they were: their own tensors are kept meanwhile."""
    own: dict[torch.nn.Parameter, torch.Tensor] = {}
    for transformer in transformers_of(pipe).values():
        # What stays in float32 however the model is loaded; diffusers has no public way to ask.
        kept = tuple(transformer._keep_in_fp32_modules or ())
        for name, parameter in transformer.named_parameters():
            if not any(part in kept for part in name.split(".")):
                own[parameter] = parameter.data
    try:
        for parameter, values in own.items():
            parameter.data = change(values)
        yield
    finally:
        for parameter, values in own.items():
            parameter.data = values
