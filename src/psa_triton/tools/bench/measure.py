"""Attention of a shape at growing lengths: dense, FlexAttention, and PSA with its stages, in one run."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psa_triton.attention import level_choice, psa_attention
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.importance import block_importance, estimation_cost
from psa_triton.kernels import attend_levels
from psa_triton.levels import choose_levels, read_density
from psa_triton.tools.bench.clock import median_seconds
from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.bench.memory import in_fresh_process, scratch_bytes
from psa_triton.tools.shapes import AttentionShape, find_shape

logger = logging.getLogger("psa_triton")

DENSE, PSA = "sdpa", "psa"
KERNEL, CHOICE = "psa kernel", "psa choice of levels"
FLEX, FLEX_SPARSE = "flex", "flex, block-sparse"

_FEWEST_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure."""

    config: PSAConfig
    device: torch.device
    dtype: torch.dtype
    impl: Impl = "auto"
    repeats: int = 3
    flex: bool = True
    seconds: float = 120.0
    """No longer length is begun that is expected to take the whole run past this."""


@dataclass(frozen=True)
class Case:
    """What one length took."""

    tokens: int
    density: float
    """Groups read over keys visible."""
    estimation_share: float
    """Multiply-adds of the estimate, as a share of dense attention's."""
    seconds: dict[str, float] = field(default_factory=dict)
    scratch: dict[str, int | None] = field(default_factory=dict)
    """Bytes at the peak beside inputs and output."""

    @property
    def speedup(self) -> float:
        """Of the whole operator over dense attention."""
        return self.seconds[DENSE] / self.seconds[PSA]


def measure_scaling(shape: AttentionShape, settings: Settings) -> Iterator[Case]:
    """Measure smaller videos of the shape first, each twice as long as the last, and the shape itself at the end.

    Stops early where the next length would take too long: attention's time grows with the square of the length.
    """
    began = time.perf_counter()
    last: Case | None = None
    for tokens in lengths(shape):
        if last is not None:
            # Without what is done once: compiling, starting processes.
            rounds = sum(last.seconds.values()) * (settings.repeats + 1)
            expected = rounds * (tokens / last.tokens) ** 2
            if time.perf_counter() - began + expected > settings.seconds:
                logger.info("%d tokens would take about %.0f s more: left out", tokens, expected)
                return
        smaller = shape if tokens == shape.tokens else shape.shrunk(tokens)
        if tokens < shape.tokens <= smaller.tokens:
            continue  # as large as the shape itself, once its sides are rounded
        last = measure_case(smaller, settings)
        yield last


def lengths(shape: AttentionShape) -> list[int]:
    """Lengths to measure: powers of two below the shape's own, and that."""
    smaller = []
    tokens = _FEWEST_TOKENS
    while tokens < shape.tokens:
        smaller.append(tokens)
        tokens *= 2
    return [*smaller, shape.tokens]


def measure_case(shape: AttentionShape, settings: Settings) -> Case:
    """Measure one length; tokens are in order already, as they are inside a model."""
    tensors = local_inputs(shape, device=settings.device, dtype=settings.dtype)
    config = settings.config.replace(use_rearrange=False)
    levels = _choose(shape, settings, *tensors)
    share = read_density(
        levels,
        block_m=config.block_m,
        block_n=config.block_n,
        query_tokens=shape.tokens,
        key_tokens=shape.tokens,
        is_causal=shape.is_causal,
    )
    density = float(share.mean())
    functions = _functions(shape, settings, tensors)
    functions[CHOICE] = partial(_choose, shape, settings, *tensors)
    functions[KERNEL] = partial(_attend, shape, settings, tensors, levels)
    if settings.flex and not shape.is_causal:
        functions |= _flex_functions(shape, config, tensors, density)
    return Case(
        tokens=shape.tokens,
        density=density,
        estimation_share=estimation_cost(config.importance, config.block_m, config.block_n),
        seconds=median_seconds(functions, repeats=settings.repeats, device=settings.device),
        scratch=_scratch(shape, settings, tensors),
    )


def _functions(
    shape: AttentionShape, settings: Settings, tensors: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    grouped = shape.heads != shape.key_heads
    return {
        DENSE: partial(F.scaled_dot_product_attention, *tensors, is_causal=shape.is_causal, enable_gqa=grouped),
        PSA: partial(
            psa_attention,
            *tensors,
            settings.config.replace(use_rearrange=False),
            prefix_tokens=shape.prefix_tokens,
            is_causal=shape.is_causal,
            impl=settings.impl,
        ),
    }


def _flex_functions(
    shape: AttentionShape, config: PSAConfig, tensors: tuple[Tensor, Tensor, Tensor], density: float
) -> dict[str, Callable[[], Tensor]]:
    """FlexAttention, dense and of the same density; the mask is made beforehand."""
    # Brings torch's compiler, which the fresh processes that measure memory need not wait for.
    from psa_triton.tools.bench.flex import block_mask, compiled_flex_attention, most_important

    attention = compiled_flex_attention()
    importance = block_importance(*tensors[:2], block_m=config.block_m, block_n=config.block_n, method="pooled")
    chosen = most_important(importance, density)
    mask = block_mask(chosen, block_m=config.block_m, block_n=config.block_n, tokens=shape.tokens)
    grouped = shape.heads != shape.key_heads
    return {
        FLEX: partial(attention, *tensors, enable_gqa=grouped),
        FLEX_SPARSE: partial(attention, *tensors, block_mask=mask, enable_gqa=grouped),
    }


def _choose(shape: AttentionShape, settings: Settings, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return choose_levels(
        q,
        k,
        level_choice(settings.config),
        v=v,
        scale=shape.dim**-0.5,
        prefix_tokens=shape.prefix_tokens,
        is_causal=shape.is_causal,
        impl=settings.impl,
    )


def _attend(
    shape: AttentionShape, settings: Settings, tensors: tuple[Tensor, Tensor, Tensor], levels: Tensor
) -> Tensor:
    choice = level_choice(settings.config)
    out, _ = attend_levels(
        *tensors,
        levels,
        block_m=choice.block_m,
        block_n=choice.block_n,
        coarsest=choice.coarsest,
        is_causal=shape.is_causal,
        scale=shape.dim**-0.5,
        pool_correction=settings.config.pool_correction,
        impl=settings.impl,
    )
    return out


def _scratch(
    shape: AttentionShape, settings: Settings, tensors: tuple[Tensor, Tensor, Tensor]
) -> dict[str, int | None]:
    if settings.device.type == "cpu":
        return in_fresh_process(_request(shape, settings))
    functions = _functions(shape, settings, tensors)
    return {name: scratch_bytes(function, settings.device) for name, function in functions.items()}


def _request(shape: AttentionShape, settings: Settings) -> dict[str, Any]:
    return {
        "shape": shape.name,
        "key_heads": shape.key_heads,
        "tokens": shape.tokens,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "impl": settings.impl,
        "config": settings.config.model_dump(mode="json"),
    }


def _measure_scratch_here(request: dict[str, Any]) -> dict[str, int | None]:
    """The other end of `in_fresh_process`."""
    shape = find_shape(request["shape"]).with_heads(request["key_heads"])
    settings = Settings(
        config=PSAConfig(**request["config"]),
        device=torch.device("cpu"),
        dtype=getattr(torch, request["dtype"]),
        impl=request["impl"],
    )

    def functions(tokens: int) -> dict[str, Callable[[], Tensor]]:
        smaller = shape if tokens == shape.tokens else shape.shrunk(tokens)
        tensors = local_inputs(smaller, device=settings.device, dtype=settings.dtype)
        return _functions(smaller, settings, tensors)

    for function in functions(min(_FEWEST_TOKENS, shape.tokens)).values():
        function()  # libraries and threads have their memory now
    return {name: scratch_bytes(run, settings.device) for name, run in functions(request["tokens"]).items()}


if __name__ == "__main__":
    print(json.dumps(_measure_scratch_here(json.loads(sys.argv[1]))))
