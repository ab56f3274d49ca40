"""What the hooks and processors of one transformer share: the forward under way, and how it attends."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.integrations.diffusers.parallel import HeadParallel, head_parallel
from psa_triton.integrations.diffusers.rules import DenseRules
from psa_triton.integrations.diffusers.stats import CallKey, LevelRecord, Recorder
from psa_triton.integrations.diffusers.steps import Schedule
from psa_triton.levels import read_density
from psa_triton.ordering import TokenOrder, grid_order

logger = logging.getLogger("psa_triton")

OnLevels = Callable[[LevelRecord], None]
"""Told what each sparse call read."""


@dataclass
class AttentionCall:
    """One call of one attention layer."""

    config: PSAConfig | None
    """How to attend; None: as the model would without PSA."""
    densities: torch.Tensor | None = None
    """Groups read / keys visible, `[B, H]`; None for a dense call."""
    levels: torch.Tensor | None = None
    """What was read, int8 `[B, H, nq, nk]`; None for a dense call."""


@dataclass(frozen=True)
class _Forward:
    """What is known of one forward. Without any, attention runs dense, on tokens in their own order."""

    dense_reason: str | None = "outside a transformer forward"
    step: int | None = None
    progress: float = 0.0
    timestep: torch.Tensor | float | None = None
    grid: tuple[int, int, int] | None = None
    visual_tokens: int = 0
    parallel: HeadParallel | None = None
    order: Callable[..., TokenOrder] | None = None


_OUTSIDE = _Forward()


class ForwardState:
    """The forward under way in one transformer: its denoising step, grid, token order, and whether it is sparse.

    Every thread has its own: several pipelines may run one transformer at the same time. A forward holds from `begin`
    to `end`, and again in its backward, so that blocks recomputed by gradient checkpointing see the same, in whichever
    thread that runs. `torch.compile` leaves all of it out of its graphs: they would be compiled anew for each step.

    A copy, as of a copied transformer, has the same rules and no forward, no counts and no `on_levels`.

    Args:
        name: of the transformer in the pipeline.
        rules: the attention to run, and what runs dense.
        schedule: tells the step of a forward.
        recorder: where calls and gathers are counted.
        impl: implementation of the operator, as in `psa_attention`.
        on_levels: told of every sparse call, outside its seconds.
    """

    def __init__(
        self,
        name: str,
        rules: DenseRules,
        *,
        schedule: Schedule,
        recorder: Recorder,
        impl: Impl,
        on_levels: OnLevels | None = None,
    ) -> None:
        self._name = name
        self._rules = rules
        self._schedule = schedule
        self._recorder = recorder
        self._impl = impl
        self._on_levels = on_levels
        self._detached = False
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._running: set[threading.Thread] = set()

    def __getstate__(self) -> dict[str, Any]:
        own = {"_lock", "_thread", "_running", "_on_levels"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _on_levels=None)
        self._forget()

    @property
    def _now(self) -> _Forward:
        """The forward of this thread."""
        return getattr(self._thread, "forward", _OUTSIDE)

    @torch.compiler.disable
    def begin(
        self,
        transformer: Any,
        timestep: torch.Tensor | float,
        grid: tuple[int, int, int],
        device: torch.device,
        *,
        prefix_tokens: int = 0,
        masked: bool = False,
    ) -> None:
        """Note what the forward that starts now in this thread works on.

        With a step cache dense steps are reordered as well: block outputs that it keeps from one step to the next are
        only of use in the order they were made in.

        Args:
            transformer: that is called.
            timestep: as the transformer gets it: a scalar, `[B]`, or `[B, N]` with one entry a token.
            grid: visual tokens as (frames, height, width).
            device: where it runs.
            prefix_tokens: text tokens in the attended sequence.
            masked: whether an attention mask comes along.

        Raises:
            ValueError: if the rules go by the step and it cannot be told, or tokens are shared between processes in a
                form that sparse attention cannot take part in.
        """
        if self._detached:
            return
        step, steps = self._step(transformer, timestep)
        visual_tokens = math.prod(grid)
        reason = self._rules.of_forward(step, steps, prefix_tokens + visual_tokens, device.type, masked)
        order = None if masked or (reason and not transformer.is_cache_enabled) else self._grid_order(grid)
        progress = step / steps if step is not None else 0.0
        parallel = head_parallel(transformer)
        with self._lock:
            if self._detached:
                return
            self._running.add(threading.current_thread())
            self._thread.forward = _Forward(reason, step, progress, timestep, grid, visual_tokens, parallel, order)
        self._recorder.count("forwards")

    @torch.compiler.disable
    def end(self, output: Any) -> None:
        """The forward of this thread is over, with this output; None if it failed."""
        forward = self._now
        self._thread.forward = _OUTSIDE
        self._running.discard(threading.current_thread())
        if output is None or forward is _OUTSIDE or not torch.is_grad_enabled():
            return

        def resume(_: torch.Tensor) -> None:
            self._thread.forward = _OUTSIDE if self._detached else forward

        for x in output.values() if isinstance(output, Mapping) else output:
            if isinstance(x, torch.Tensor) and x.requires_grad:
                x.register_hook(resume)

    def detach(self) -> None:
        """Do nothing from now on: compiled code may go on calling the hooks that were removed.

        Raises:
            RuntimeError: if a forward runs in another thread: it would go on with half of its hooks.
        """
        with self._lock:
            if any(thread.is_alive() for thread in self._running - {threading.current_thread()}):
                raise RuntimeError(
                    f"{self._name}: a forward is running in another thread, and PSA cannot be detached in the middle "
                    "of it; wait until it is done"
                )
            self._detached = True
            self._thread = threading.local()

    def _step(self, transformer: Any, timestep: torch.Tensor | float) -> tuple[int | None, int]:
        try:
            return self._schedule.step(transformer, timestep)
        except ValueError:
            if self._rules.need_steps:
                raise
            return None, 0

    @property
    def parallel(self) -> HeadParallel | None:
        """How tokens are shared between processes in this forward."""
        return self._now.parallel

    @property
    def reorders(self) -> bool:
        """Whether this forward's blocks see visual tokens in another order than their own."""
        return self._now.order is not None

    @torch.compiler.disable
    def permute(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """`x` with its visual tokens, along `dim`, in the order of this forward; `x` itself if there is none."""
        if self._now.order is None:
            return x
        self._recorder.count("gathers")
        return self._now.order(device=x.device).apply(x, dim=dim)

    @torch.compiler.disable
    def restore(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The inverse of `permute`. Where tokens are shared between processes, `x` is one share, and so is the result.

        What comes after the blocks expects its own share of the tokens: they are gathered from all processes for it.
        """
        now = self._now
        if now.order is None:
            return x
        self._recorder.count("gathers")
        order = now.order(device=x.device)
        if now.parallel is None:
            return order.restore(x, dim=dim)
        whole = now.parallel.join(x, dim, now.visual_tokens)
        return now.parallel.share(order.restore(whole, dim=dim), dim)

    def permute_share(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """`permute`, and of that the share of this process where tokens are shared."""
        permuted = self.permute(x, dim)
        return permuted if self.parallel is None else self.parallel.share(permuted, dim)

    def token_timesteps(self) -> torch.Tensor:
        """Timesteps `[B, n]` of this process's reordered tokens, where the forward has one for each."""
        return self.permute_share(torch.as_tensor(self._now.timestep), dim=1)

    @contextmanager
    def call(
        self, layer: int, visual_tokens: int, prefix_tokens: int, mask: torch.Tensor | None, device: torch.device
    ) -> Iterator[AttentionCall]:
        """One attention call: says whether it is to run dense, and records how it went.

        Raises:
            ValueError: if a mask comes to shared tokens, or to reordered ones, of which `begin` was not told.
        """
        now = self._now
        if mask is not None and (now.order is not None or now.parallel is not None):
            raise ValueError(
                "attention_mask: expected None inside a block whose tokens are reordered or shared between processes, "
                "got a mask"
            )
        config = None if self._rules.config is None else self._rules.config.at(layer, now.progress)
        reason = "attention mask" if mask is not None else now.dense_reason or self._rules.of_layer(layer, config)
        call = AttentionCall(config if reason is None else None)
        started = self._clock(device)
        yield call
        seconds = self._clock(device) - started
        tokens = prefix_tokens + (visual_tokens if now.parallel is None else now.visual_tokens)
        density = 1.0 if call.densities is None else call.densities.mean()
        self._recorder.add(CallKey(self._name, layer, now.step, tokens, reason), density, seconds)
        if call.config is not None and call.config.verbose:
            logger.info(
                "%s layer %d step %s: %d tokens, density %.3f, %.4f s",
                *(self._name, layer, now.step, tokens, float(density), seconds),
            )
        if self._on_levels is not None and call.levels is not None:
            self._on_levels(self._level_record(layer, call, prefix_tokens))

    def attend(
        self, call: AttentionCall, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix_tokens: int = 0
    ) -> torch.Tensor:
        """Attention of this forward; where tokens are shared between processes, they are exchanged for heads.

        Args:
            call: how, and where it is noted what was read, of this process's heads where they are shared.
            q: `[B, H, N, D]`, like `k` and `v`; transposed views are fine.
            k: keys.
            v: values.
            prefix_tokens: text tokens at the start of the sequence.

        Returns:
            `[B, H, N, D]`.
        """
        parallel, heads = self._now.parallel, q.shape[1]
        if parallel is None:
            return self._attend_whole(call, q, k, v, prefix_tokens)
        q, k, v = parallel.to_heads(torch.stack([q, k, v]), self._now.visual_tokens, prefix_tokens)
        return parallel.to_tokens(self._attend_whole(call, q, k, v, prefix_tokens), heads, prefix_tokens)

    def _attend_whole(
        self, call: AttentionCall, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix_tokens: int
    ) -> torch.Tensor:
        config = call.config
        if config is None:
            return scaled_dot_product_attention(q, k, v)
        # Tokens already lie along the curve or in tiles; clusters are found anew in each layer.
        grid = self._now.grid if config.rearrange_method in ("SemanticAware", "Hybrid") else None
        out, call.levels = sparse_attention(q, k, v, config, grid=grid, prefix_tokens=prefix_tokens, impl=self._impl)
        call.densities = read_density(call.levels, Blocks.of(q, k, config.block_m, config.block_n))
        return out

    def _level_record(self, layer: int, call: AttentionCall, prefix_tokens: int) -> LevelRecord:
        now = self._now
        assert now.grid is not None and call.config is not None  # as of every sparse call
        assert call.levels is not None and call.densities is not None
        return LevelRecord(
            transformer=self._name,
            layer=layer,
            step=now.step,
            config=call.config,
            levels=call.levels,
            densities=call.densities,
            grid=now.grid,
            prefix_tokens=prefix_tokens,
            order=None if now.order is None else now.order(device="cpu"),
        )

    def _grid_order(self, grid: tuple[int, int, int]) -> Callable[..., TokenOrder] | None:
        """The one order of all layers, where it follows from the grid alone; made on the device where it is needed."""
        config = self._rules.config
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
