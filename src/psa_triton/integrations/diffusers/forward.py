"""The forward under way in one transformer, and how its attention layers attend."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from psa_triton.attention import sparse_attention
from psa_triton.blocks import Blocks
from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.importance import estimation_cost
from psa_triton.integrations.diffusers.families import FAMILIES, Family, Grid
from psa_triton.integrations.diffusers.layout import Layout, Unfit, Visual, find_layout, visual_order
from psa_triton.integrations.diffusers.parallel import HeadParallel, Stream, head_parallel
from psa_triton.integrations.diffusers.stats import CallKey, LevelRecord, PSAStats
from psa_triton.integrations.diffusers.steps import Schedule
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder
from psa_triton.levels import read_density

logger = logging.getLogger("psa_triton")

OnLevels = Callable[[LevelRecord], None]
"""Told what each sparse call read."""

NO_CALL = "no call of scaled_dot_product_attention"
"""Why a layer ran dense whose processor did not attend in a way that PSA can answer."""


@dataclass(frozen=True, eq=False)
class Forward:
    """What is known of one forward. Without any, attention runs dense."""

    dense_reason: str | None = "outside a transformer forward"
    step: int | None = None
    progress: float = 0.0
    grids: tuple[Grid, ...] = ()
    visual: Visual = "first"
    others: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parallel: HeadParallel | None = None
    layouts: dict[Any, Any] = field(default_factory=dict)
    """What was found of the layers' sequences and masks, so that it is found once."""

    @property
    def visual_tokens(self) -> int:
        """Tokens of all grids."""
        return sum(prod(grid) for grid in self.grids)


_OUTSIDE = Forward()


class ForwardState:
    """The forward under way in one transformer: its denoising step, grids, and whether it is sparse.

    Every thread has its own: several pipelines may run one transformer at the same time. A forward holds from `begin`
    to `end`, and again in its backward, so that blocks recomputed by gradient checkpointing see the same, in whichever
    thread that runs. `torch.compile` leaves all of it out of its graphs: they would be compiled anew for each step.

    A copy, as of a copied transformer, has the same rules and no forward, no counts and no `on_levels`.

    Args:
        name: of the transformer in the pipeline.
        family: name of its row in `FAMILIES`.
        rules: the attention to run, and what runs dense.
        schedule: tells the step of a forward.
        recorder: where calls and gathers are counted.
        impl: implementation of the operator, as in `psa_attention`.
        on_levels: told of every sparse call, outside its seconds.
    """

    def __init__(
        self,
        name: str,
        family: str,
        rules: DenseRules,
        *,
        schedule: Schedule,
        recorder: Recorder[CallKey, PSAStats],
        impl: Impl,
        on_levels: OnLevels | None = None,
    ) -> None:
        self.name = name
        self.rules = rules
        self.recorder = recorder
        self.impl = impl
        self.on_levels = on_levels
        self._family = family
        self._schedule = schedule
        self._detached = False
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._running: set[threading.Thread] = set()

    def __getstate__(self) -> dict[str, Any]:
        own = {"_lock", "_thread", "_running", "on_levels"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, on_levels=None)
        self._forget()

    @property
    def family(self) -> Family:
        """The transformer's row."""
        return FAMILIES[self._family]

    @property
    def now(self) -> Forward:
        """The forward of this thread."""
        return getattr(self._thread, "forward", _OUTSIDE)

    @torch.compiler.disable
    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before each forward: note what it works on, and leave out what is not for PSA."""
        if self._detached:
            return None
        bound = signature(type(module).forward).bind(module, *args, **kwargs)
        bound.apply_defaults()
        family, given = self.family, bound.arguments
        visual = family.visual if family.visual in ("first", "last") else given[family.visual]
        timestep = None if family.timestep is None else given[family.timestep]
        grids = tuple(family.grids(module.config, given))
        device = next(x.device for x in _tensors(given.values()))
        self.begin(module, timestep, grids, device, visual=visual, others=family.other_tokens(given))
        if self.now.dense_reason is not None or not any(kwargs.get(name) is not None for name in family.leave_out):
            return None
        return args, {name: None if name in family.leave_out else value for name, value in kwargs.items()}

    def begin(
        self,
        transformer: Any,
        timestep: Tensor | float | None,
        grids: tuple[Grid, ...],
        device: torch.device,
        *,
        visual: Visual = "first",
        others: int = 0,
    ) -> None:
        """Note what the forward that starts now in this thread works on.

        Args:
            transformer: that is called.
            timestep: of the scheduler: a scalar, `[B]`, or `[B, N]` with one entry a token; None where it cannot be
                told, and the scheduler's own count has to do.
            grids: visual tokens as (frames, height, width), as they follow each other.
            device: where it runs.
            visual: where the visual tokens stand.
            others: further tokens in the attended sequence, of text say.

        Raises:
            ValueError: if the rules go by the step and it cannot be told, tokens are shared between processes in a
                form that sparse attention cannot take part in, or the order is one for a single grid.
        """
        step, steps = self._step(transformer, timestep)
        config, reason = self.rules.config, None
        if config is not None:
            if len(grids) > 1 and config.use_rearrange and config.rearrange_method == "Hybrid":
                raise ValueError(
                    f"rearrange_method: 'Hybrid' clusters tokens of one grid, and {type(transformer).__name__} attends "
                    f"to {len(grids)} here; use 'Gilbert'"
                )
            tokens = others + sum(prod(grid) for grid in grids)
            reason = self.rules.of_length(tokens, config, device, transformer.dtype, others)
        reason = self.rules.of_layer(None, config) or reason or self.rules.of_step(step, steps)
        progress = step / steps if step is not None else 0.0
        parallel = head_parallel(transformer)
        with self._lock:
            if self._detached:
                return
            self._running.add(threading.current_thread())
            self._thread.forward = Forward(reason, step, progress, grids, visual, others, device, parallel)
        self.recorder.count("forwards")

    @torch.compiler.disable
    def after(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Hook after each forward of this thread, with its output; None if it failed."""
        forward = self.now
        self._thread.forward = _OUTSIDE
        self._running.discard(threading.current_thread())
        if output is None or forward is _OUTSIDE or not torch.is_grad_enabled():
            return

        def resume(_: Tensor) -> None:
            self._thread.forward = _OUTSIDE if self._detached else forward

        for x in _tensors(output.values() if isinstance(output, Mapping) else output):
            if x.requires_grad:
                x.register_hook(resume)

    def detach(self) -> None:
        """Do nothing from now on: compiled code may go on calling the hooks that were removed.

        Raises:
            RuntimeError: if a forward runs in another thread: some of its layers would be sparse and others not.
        """
        with self._lock:
            if any(thread.is_alive() for thread in self._running - {threading.current_thread()}):
                raise RuntimeError(
                    f"{self.name}: a forward is running in another thread, and PSA cannot be detached in the middle "
                    "of it; wait until it is done"
                )
            self._detached = True
            self._thread = threading.local()

    def _step(self, transformer: Any, timestep: Tensor | float | None) -> tuple[int | None, int]:
        try:
            return self._schedule.step(transformer, timestep)
        except ValueError:
            if self.rules.need_steps:
                raise
            return None, 0

    @contextmanager
    def call(self, layer: int) -> Iterator[LayerCall]:
        """One call of an attention layer: says whether it is to run dense, and records how it went."""
        now = self.now
        config = None if self.rules.config is None else self.rules.config.at(layer, now.progress)
        call = LayerCall(self, now, layer, config, now.dense_reason or self.rules.of_layer(layer, config))
        started = self.recorder.clock(now.device)
        yield call
        call.record(self.recorder.clock(now.device) - started)


@dataclass
class Answer:
    """How one call of `scaled_dot_product_attention` was answered."""

    tokens: int
    reason: str | None
    """Why it ran dense; None if it did not."""
    density: Tensor | float = 1.0
    levels: LevelRecord | None = None


class LayerCall:
    """One call of one attention layer, in which `scaled_dot_product_attention` may be called several times.

    Args:
        state: of the transformer.
        forward: under way.
        layer: index.
        config: of the layer in this step; None runs dense.
        reason: why the whole call runs dense; None if it does not.
    """

    def __init__(
        self, state: ForwardState, forward: Forward, layer: int, config: PSAConfig | None, reason: str | None
    ) -> None:
        self._state = state
        self._forward = forward
        self._layer = layer
        self._config = config
        self._reason = reason
        self._answers: list[Answer] = []

    @property
    def is_dense(self) -> bool:
        """Whether the model's own attention is to run as it would without PSA."""
        return self._reason is not None and self._forward.parallel is None

    def run_dense(self, reason: str) -> None:
        """Run as the model would without PSA, if nothing else said so before."""
        self._reason = self._reason or reason

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What `scaled_dot_product_attention` of these arguments is to give: `[B, H, Nq, D]`.

        Where tokens are shared between processes, they are exchanged for heads before and back after.

        Raises:
            ValueError: if a mask comes to shared tokens.
        """
        forward = self._forward
        options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        if forward.parallel is None:
            return self._attend(query, key, value, attn_mask, options)
        if attn_mask is not None:
            raise ValueError("attention_mask: expected None where tokens are shared between processes, got a mask")
        streams = [Stream(forward.visual_tokens, shared=True)]
        if others := query.shape[2] - forward.parallel.length(forward.visual_tokens):
            split = Stream(forward.others, shared=others != forward.others)
            streams = [split, *streams] if forward.visual == "last" else [*streams, split]
        whole = forward.parallel.to_heads(torch.stack([query, key, value]), streams)
        return forward.parallel.to_tokens(
            self._attend(whole[0], whole[1], whole[2], None, options), query.shape[1], streams
        )

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        try:
            if self._reason is not None:
                raise Unfit(self._reason)
            return self._attend_sparse(query, key, value, attn_mask, options)
        except Unfit as reason:
            self._answers.append(Answer(max(query.shape[2], key.shape[2]), str(reason)))
            return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)

    def _attend_sparse(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        forward, state, config = self._forward, self._state, self._config
        assert config is not None  # else there is a reason to run dense
        tokens, queries = key.shape[2], query.shape[2]
        grids = self._grids(tokens)
        count = sum(prod(grid) for grid in grids)
        if options["is_causal"]:
            raise Unfit("causal")
        if options["dropout_p"]:
            raise Unfit("dropout")
        if tokens < count:
            raise Unfit("other tokens")
        if queries != tokens and not (state.family.more_keys and queries == count and attn_mask is None):
            raise Unfit("other keys than queries")
        layout = self._layout(grids, query, key, attn_mask)
        # The operator's exempt tokens are queries as well as keys: zeros stand for those that are keys alone.
        missing = tokens - queries
        q = query if missing == 0 else torch.cat([query.new_zeros(*query.shape[:2], missing, query.shape[3]), query], 2)
        q, k, v = (layout.apply(x) for x in (q, key, value))
        by_content = config.rearrange_method in ("SemanticAware", "Hybrid")
        out, levels = sparse_attention(
            q,
            k,
            v,
            config,
            grid=grids[0] if by_content and len(grids) == 1 else None,
            prefix_tokens=layout.others,
            key_mask=layout.key_mask,
            scale=options["scale"],
            impl=state.impl,
        )
        if layout.order is not None:
            state.recorder.count("gathers", 4)
        blocks = Blocks(config.block_m, config.block_n, tokens, tokens, key_mask=layout.key_mask)
        densities = read_density(levels, blocks)
        record = None
        if state.on_levels is not None:
            record = LevelRecord(
                transformer=state.name,
                layer=self._layer,
                step=forward.step,
                config=config,
                levels=levels,
                densities=densities,
                grid=grids[0] if len(grids) == 1 else (1, 1, count),
                prefix_tokens=layout.others,
                order=visual_order(grids, config),
                qkv=(q, k, v),
            )
        self._answers.append(Answer(tokens, None, densities.mean(), record))
        return layout.undo(out)[:, :, missing:]

    def _grids(self, tokens: int) -> tuple[Grid, ...]:
        grids = self._forward.grids
        copies = tokens // max(self._forward.visual_tokens, 1) if self._state.family.copies else 1
        return grids * max(copies, 1)

    def _layout(self, grids: tuple[Grid, ...], query: Tensor, key: Tensor, attn_mask: Tensor | None) -> Layout:
        """The layout of the call, found once a forward.

        Raises:
            Unfit: there is none.
        """
        assert self._config is not None  # as of every sparse call
        place = None if attn_mask is None else (attn_mask.data_ptr(), attn_mask.shape, attn_mask.stride())
        known = self._forward.layouts.get((place, key.shape[2], len(grids)))
        if known is None:
            try:
                found: Layout | Unfit = find_layout(grids, self._forward.visual, self._config, query, key, attn_mask)
            except Unfit as reason:
                found = reason
            # The mask is kept, so that no other can come to stand in its place.
            known = self._forward.layouts[place, key.shape[2], len(grids)] = found, attn_mask
        if isinstance(known[0], Unfit):
            raise known[0]
        return known[0]

    def record(self, seconds: float) -> None:
        """Note how the call went, and tell of what was read."""
        forward, state, config = self._forward, self._state, self._config
        if not self._answers:
            reason = self._reason or NO_CALL
            self._answers.append(Answer(max(1, forward.visual_tokens + forward.others), reason))
        seconds /= len(self._answers)
        for answer in self._answers:
            cost = 0.0
            if answer.reason is None and config is not None:
                cost = estimation_cost(config.importance, config.block_m, config.block_n)
            key = CallKey(state.name, self._layer, forward.step, answer.tokens, answer.reason, cost)
            state.recorder.add(key, answer.tokens**2, answer.density, seconds)
            if answer.reason is None and config is not None and config.verbose:
                logger.info(
                    "%s layer %d step %s: %d tokens, density %.3f, %.4f s",
                    *(state.name, self._layer, forward.step, answer.tokens, float(answer.density), seconds),
                )
            if state.on_levels is not None and answer.levels is not None:
                state.on_levels(answer.levels)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among some values, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
