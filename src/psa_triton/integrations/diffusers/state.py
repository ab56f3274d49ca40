"""What the hooks and processors of one transformer share: the forward under way, and how it attends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from psa_triton.attention import sparse_attention
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.integrations.diffusers.stats import CallKey, Recorder
from psa_triton.integrations.diffusers.steps import denoising_step
from psa_triton.levels import read_density
from psa_triton.ordering import TokenOrder, grid_order

MIN_KEY_BLOCKS = 2
"""A sequence of fewer key blocks than this runs dense: with a single block there is nothing to choose from."""

logger = logging.getLogger("psa_triton")


@dataclass
class AttentionCall:
    """One call of one attention layer."""

    config: PSAConfig | None
    """How to attend; None: as the model would without PSA."""
    density: torch.Tensor | float = 1.0
    """Groups read / keys visible, a scalar."""


class ForwardState:
    """The forward under way in one transformer: its denoising step, grid, token order, and whether it is sparse.

    It holds until the next forward begins, so that blocks recomputed by gradient checkpointing see the same.

    Args:
        name: of the transformer in the pipeline.
        config: the attention to run; None runs everything dense.
        read_scheduler: gives the scheduler in use now; None where no scheduler is known.
        recorder: where calls and gathers are counted.
        impl: implementation of the operator, as in `psa_attention`.
        min_tokens: shorter sequences run dense; None for `MIN_KEY_BLOCKS` key blocks.
    """

    def __init__(
        self,
        name: str,
        config: PSAConfig | None,
        *,
        read_scheduler: Callable[[], Any],
        recorder: Recorder,
        impl: Impl,
        min_tokens: int | None,
    ) -> None:
        self._name = name
        self._config = config
        self._read_scheduler = read_scheduler
        self._recorder = recorder
        self._impl = impl
        self._min_tokens = min_tokens
        self._step: int | None = None
        self._grid: tuple[int, int, int] | None = None
        self._dense_reason: str | None = "outside a transformer forward"
        self._order: Callable[..., TokenOrder] | None = None

    def begin(
        self,
        timestep: torch.Tensor | float,
        grid: tuple[int, int, int],
        *,
        prefix_tokens: int = 0,
        masked: bool = False,
        cached: bool = False,
    ) -> None:
        """Note what the forward that starts now works on.

        Args:
            timestep: as the transformer gets it: a scalar, `[B]`, or `[B, N]` with one entry a token.
            grid: visual tokens as (frames, height, width).
            prefix_tokens: text tokens in the attended sequence.
            masked: whether an attention mask comes along.
            cached: whether a step cache keeps block outputs from one step to the next. They are only of use in the
                order they were made in, so dense steps are reordered as well.
        """
        scheduler = self._read_scheduler()
        self._step = None if scheduler is None else denoising_step(timestep, scheduler.timesteps)
        self._grid = grid
        frames, height, width = grid
        self._dense_reason = self._why_dense(prefix_tokens + frames * height * width, masked)
        self._order = None if masked or (self._dense_reason and not cached) else self._grid_order(grid)
        self._recorder.forwards += 1

    def permute(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """`x` with its visual tokens, along `dim`, in the order of this forward; `x` itself if there is none."""
        if self._order is None:
            return x
        self._recorder.gathers += 1
        return self._order(device=x.device).apply(x, dim=dim)

    def restore(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The inverse of `permute`."""
        if self._order is None:
            return x
        self._recorder.gathers += 1
        return self._order(device=x.device).restore(x, dim=dim)

    @contextmanager
    def call(self, layer: int, tokens: int, mask: torch.Tensor | None, device: torch.device) -> Iterator[AttentionCall]:
        """One attention call: says whether it is to run dense, and records how it went.

        Raises:
            ValueError: if a mask comes to reordered tokens without having been announced to `begin`.
        """
        if mask is not None and self._order is not None:
            raise ValueError("attention_mask: expected None inside a block whose tokens are reordered, got a mask")
        reason = "attention mask" if mask is not None else self._dense_reason
        call = AttentionCall(self._config if reason is None else None)
        started = self._clock(device)
        yield call
        seconds = self._clock(device) - started
        self._recorder.add(CallKey(self._name, layer, self._step, tokens, reason), call.density, seconds)
        if call.config is not None and call.config.verbose:
            logger.info(
                "%s layer %d step %s: %d tokens, density %.3f, %.4f s",
                *(self._name, layer, self._step, tokens, float(call.density), seconds),
            )

    def attend(
        self, config: PSAConfig, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix_tokens: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sparse attention of this forward.

        Args:
            config: how, from the `AttentionCall`.
            q: `[B, H, N, D]`, like `k` and `v`; transposed views are fine.
            k: keys.
            v: values.
            prefix_tokens: text tokens at the start of the sequence.

        Returns:
            `[B, H, N, D]`, and the density (a scalar).
        """
        # Tokens already lie along the curve or in tiles; clusters are found anew in each layer.
        grid = self._grid if config.rearrange_method in ("SemanticAware", "Hybrid") else None
        out, levels = sparse_attention(q, k, v, config, grid=grid, prefix_tokens=prefix_tokens, impl=self._impl)
        density = read_density(
            levels, block_m=config.block_m, block_n=config.block_n, query_tokens=q.shape[2], key_tokens=k.shape[2]
        )
        return out, density.mean()

    def _why_dense(self, tokens: int, masked: bool) -> str | None:
        if self._config is None:
            return "dense preset"
        if masked:
            return "attention mask"
        least = MIN_KEY_BLOCKS * self._config.block_n if self._min_tokens is None else self._min_tokens
        if tokens < least:
            return f"fewer than {least} tokens"
        if self._step is not None and self._step < self._config.warmup_steps:
            return "warm-up"
        return None

    def _grid_order(self, grid: tuple[int, int, int]) -> Callable[..., TokenOrder] | None:
        """The one order of all layers, where it follows from the grid alone; made on the device where it is needed."""
        config = self._config
        if config is None or not config.use_rearrange:
            return None
        method = config.rearrange_method
        if method == "Gilbert" or method == "STA":
            return partial(grid_order, method, grid, tile_size=config.tile_size)
        return None

    def _clock(self, device: torch.device) -> float:
        if not self._recorder.timed:
            return 0.0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()
