"""What the hooks and processors of one transformer share: the forward under way, and how it attends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from psa_triton.attention import psa_attention, sparse_attention
from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers.stats import CallKey, Recorder
from psa_triton.integrations.diffusers.steps import denoising_step
from psa_triton.levels import read_density
from psa_triton.ordering import TokenOrder, grid_order

MIN_KEY_BLOCKS = 2
"""A sequence of fewer key blocks than this runs dense: with a single block there is nothing to choose from."""

GRID_METHODS = ("Gilbert", "STA")
"""Token orders that follow from the grid alone, so that one permutation holds for all layers of a forward."""

logger = logging.getLogger("psa_triton")


@dataclass
class AttentionCall:
    """One call of one attention layer."""

    reason: str | None
    """Why it runs dense; None: it runs sparse."""
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
        impl: str,
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
        self._reordered = False

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
        self._reordered = self._has_grid_order and not masked and (cached or self._dense_reason is None)
        self._recorder.forwards += 1

    def permute(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """`x` with its visual tokens, along `dim`, in the order of this forward; `x` itself if there is none."""
        return self._order(x.device).apply(x, dim=dim) if self._reordered else x

    def restore(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The inverse of `permute`."""
        return self._order(x.device).restore(x, dim=dim) if self._reordered else x

    @contextmanager
    def call(
        self, layer: int, tokens: int, mask: torch.Tensor | None, device: torch.device
    ) -> Iterator[AttentionCall]:
        """One attention call: says whether it is to run dense, and records how it went.

        Raises:
            ValueError: if a mask comes to reordered tokens without having been announced to `begin`.
        """
        if mask is not None and self._reordered:
            raise ValueError("attention_mask: expected None inside a block whose tokens are reordered, got a mask")
        call = AttentionCall("attention mask" if mask is not None else self._dense_reason)
        started = self._clock(device)
        yield call
        seconds = self._clock(device) - started
        key = CallKey(self._name, layer, self._step, tokens, call.reason)
        self._recorder.add(key, call.density, seconds)
        if self._config is not None and self._config.verbose and call.reason is None:
            logger.info(
                "%s layer %d step %s: %d tokens, density %.3f, %.4f s",
                *(self._name, layer, self._step, tokens, float(call.density), seconds),
            )

    def attend(
        self, call: AttentionCall, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix_tokens: int = 0
    ) -> torch.Tensor:
        """Sparse attention of this forward.

        Args:
            call: gets the density.
            q: `[B, H, N, D]`, like `k` and `v`; transposed views are fine.
            k: keys.
            v: values.
            prefix_tokens: text tokens at the start of the sequence.

        Returns:
            `[B, H, N, D]`.
        """
        config = self._config
        if config.use_rearrange and not self._reordered:
            return psa_attention(q, k, v, config, grid=self._grid, prefix_tokens=prefix_tokens, impl=self._impl)
        out, levels = sparse_attention(q, k, v, config, prefix_tokens=prefix_tokens, impl=self._impl)
        call.density = read_density(
            levels,
            block_m=config.block_m,
            block_n=config.block_n,
            query_tokens=q.shape[-2],
            key_tokens=k.shape[-2],
        ).mean()
        return out

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

    @property
    def _has_grid_order(self) -> bool:
        config = self._config
        return config is not None and config.use_rearrange and config.rearrange_method in GRID_METHODS

    def _order(self, device: torch.device) -> TokenOrder:
        self._recorder.gathers += 1
        config = self._config
        return grid_order(config.rearrange_method, self._grid, tile_size=config.tile_size, device=device)

    def _clock(self, device: torch.device) -> float:
        if not self._recorder.timed:
            return 0.0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()
