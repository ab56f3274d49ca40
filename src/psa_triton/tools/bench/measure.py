"""Attention of a shape at growing lengths: dense, FlexAttention, and PSA with its stages, in one run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psa_triton.attention import psa_attention
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl, resolve_impl
from psa_triton.importance import block_importance, estimation_cost
from psa_triton.kernels import Reading, attend
from psa_triton.levels import coarsest_level
from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.bench.memory import in_fresh_process, scratch_bytes
from psa_triton.tools.clock import median_seconds
from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.shapes import AttentionShape

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
    doubled = (_FEWEST_TOKENS << doublings for doublings in count())
    return [*takewhile(lambda tokens: tokens < shape.tokens, doubled), shape.tokens]


def measure_case(shape: AttentionShape, settings: Settings) -> Case:
    """Measure one length; tokens are in order already, as they are inside a model."""
    inputs, config = _inputs(shape, settings), settings.config
    levels = inputs.choose_levels(config, settings.impl)
    density = float(inputs.density(levels, config).mean())
    functions = _functions(inputs, settings)
    functions[CHOICE] = partial(inputs.choose_levels, config, settings.impl)
    functions[KERNEL] = partial(_attend, inputs, settings, levels)
    if settings.flex and not shape.is_causal:
        functions |= _flex_functions(inputs, config, density)
    on_cpu = settings.device.type == "cpu"
    return Case(
        tokens=shape.tokens,
        density=density,
        estimation_share=estimation_cost(config.importance, config.block_m, config.block_n),
        seconds=median_seconds(functions, repeats=settings.repeats, device=settings.device),
        scratch=in_fresh_process(_scratch, shape, settings) if on_cpu else _scratch(shape, settings),
    )


def _inputs(shape: AttentionShape, settings: Settings) -> AttentionInputs:
    q, k, v = local_inputs(shape, device=settings.device, dtype=settings.dtype)
    return AttentionInputs(q=q, k=k, v=v, prefix_tokens=shape.prefix_tokens, is_causal=shape.is_causal)


def _functions(x: AttentionInputs, settings: Settings) -> dict[str, Callable[[], Tensor]]:
    assert x.v is not None
    causal, grouped = x.is_causal, x.q.shape[1] != x.k.shape[1]
    config = settings.config.replace(use_rearrange=False)
    marks: dict[str, Any] = {"prefix_tokens": x.prefix_tokens, "is_causal": causal, "impl": settings.impl}
    return {
        DENSE: partial(F.scaled_dot_product_attention, x.q, x.k, x.v, is_causal=causal, enable_gqa=grouped),
        PSA: partial(psa_attention, x.q, x.k, x.v, config, **marks),
    }


def _flex_functions(x: AttentionInputs, config: PSAConfig, density: float) -> dict[str, Callable[[], Tensor]]:
    """FlexAttention, dense and of the same density; the mask is made beforehand."""
    # Brings torch's compiler, which the fresh processes that measure memory need not wait for.
    from psa_triton.tools.bench.flex import block_mask, compiled_flex_attention, most_important

    blocks: dict[str, Any] = {"block_m": config.block_m, "block_n": config.block_n}
    chosen = most_important(block_importance(x.q, x.k, method="pooled", **blocks), density)
    mask = block_mask(chosen, tokens=x.q.shape[2], **blocks)
    attention = partial(compiled_flex_attention(), x.q, x.k, x.v, enable_gqa=x.q.shape[1] != x.k.shape[1])
    return {FLEX: attention, FLEX_SPARSE: partial(attention, block_mask=mask)}


def _attend(x: AttentionInputs, settings: Settings, levels: Tensor) -> Tensor:
    assert x.v is not None
    config, impl = settings.config, resolve_impl(settings.impl, x.q)
    blocks = Blocks.of(x.q, x.k, config.block_m, config.block_n, x.is_causal)
    reading = Reading(x.q.shape[-1] ** -0.5, config.pool_correction, coarsest_level(config), config.qk_dtype, impl)
    out, _ = attend(x.q, x.k, x.v, levels, blocks, reading)
    return out


def _scratch(shape: AttentionShape, settings: Settings) -> dict[str, int | None]:
    """Bytes at the peak of each attention."""
    few = shape.shrunk(_FEWEST_TOKENS) if shape.tokens > _FEWEST_TOKENS else shape
    for run in _functions(_inputs(few, settings), settings).values():
        run()  # libraries and threads have their memory now
    functions = _functions(_inputs(shape, settings), settings)
    return {name: scratch_bytes(run, settings.device) for name, run in functions.items()}
