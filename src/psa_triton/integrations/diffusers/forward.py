"""The forward under way in one transformer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.attend import Grid
from psa_triton.integrations.diffusers.families import FAMILIES, Family
from psa_triton.integrations.diffusers.layout import Visual, visual_tokens
from psa_triton.integrations.diffusers.parallel import HeadParallel, head_parallel
from psa_triton.integrations.diffusers.stats import LevelRecord, PSAStats
from psa_triton.integrations.diffusers.steps import Schedule
from psa_triton.integrations.reuse import StepReuse
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder

OnLevels = Callable[[LevelRecord], None]
"""Told what each sparse call read."""


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
    reuse: StepReuse | None = None
    """What layers kept from the steps before, where they reuse it."""
    layouts: dict[Any, Any] = field(default_factory=dict)
    """What was found of the layers' sequences and masks, so that it is found once."""


_OUTSIDE = Forward()


@dataclass(eq=False)
class ForwardState:
    """The forward under way in one transformer: its denoising step, grids, and whether it is sparse.

    Every thread has its own: several pipelines may run one transformer at the same time. A forward holds from `before`
    to `after`, and again in its backward, so that blocks recomputed by gradient checkpointing see the same, in
    whichever thread that runs. `torch.compile` leaves all of it out of its graphs: they would be compiled anew for each
    step.

    A copy, as of a copied transformer, has the same rules and no forward, no counts and no `on_levels`.
    """

    name: str
    """Of the transformer in the pipeline."""
    family_name: str
    """Of its row in `FAMILIES`."""
    rules: DenseRules
    """The attention to run, and what runs dense."""
    schedule: Schedule
    """Tells the step of a forward."""
    recorder: Recorder[PSAStats]
    """Where calls and gathers are counted."""
    on_levels: OnLevels | None
    """Told of every sparse call, outside its seconds."""
    kept: threading.local
    """What layers keep from step to step, of each thread. Transformers of a pipeline share it: where one takes over
    from the other, what that kept is of no more use and takes the memory of as much."""

    def __post_init__(self) -> None:
        self._detached = False
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._running: set[threading.Thread] = set()

    def __getstate__(self) -> dict[str, Any]:
        own = {"_lock", "_thread", "_running", "on_levels", "kept"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, on_levels=None, kept=threading.local())
        self._forget()

    @property
    def family(self) -> Family:
        """The transformer's row."""
        return FAMILIES[self.family_name]

    @property
    def now(self) -> Forward:
        """The forward of this thread."""
        return getattr(self._thread, "forward", _OUTSIDE)

    @torch.compiler.disable
    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before each forward: note what it works on, and leave out what is not for PSA.

        Raises:
            ValueError: if the rules go by the step and it cannot be told, tokens are shared between processes in a
                form that sparse attention cannot take part in, or the order is one for a single grid.
        """
        if self._detached:
            return None
        bound = signature(type(module).forward).bind(module, *args, **kwargs)
        bound.apply_defaults()
        forward = self._begin(module, bound.arguments)
        with self._lock:
            if self._detached:
                return None
            self._running.add(threading.current_thread())
            self._thread.forward = forward
        self.recorder.count("forwards")
        leave_out = self.family.leave_out
        if forward.dense_reason is not None or not any(kwargs.get(name) is not None for name in leave_out):
            return None
        return args, {name: None if name in leave_out else value for name, value in kwargs.items()}

    def _begin(self, transformer: Any, given: Mapping[str, Any]) -> Forward:
        """What the forward of `transformer` with these arguments works on."""
        family, config, reason = self.family, self.rules.config, None
        grids, others = tuple(family.grids(transformer.config, given)), family.other_tokens(given)
        latent = next(x for x in _tensors(given.values()) if x.is_floating_point())
        step, timesteps = self._step(transformer, None if family.timestep is None else given[family.timestep])
        steps = 0 if timesteps is None else len(timesteps)
        if config is not None:
            if len(grids) > 1 and config.use_rearrange and config.rearrange_method == "Hybrid":
                raise ValueError(
                    f"rearrange_method: 'Hybrid' clusters tokens of one grid, and {type(transformer).__name__} attends "
                    f"to {len(grids)} here; use 'Gilbert'"
                )
            tokens = others + visual_tokens(grids)
            reason = self.rules.of_length(tokens, config, latent.device, latent.dtype, others)
        by_step = self.rules.of_step(step, steps)
        reason = self.rules.of_layer(None, config) or reason or by_step
        parallel = head_parallel(transformer)
        reuse = None if step is None else self._reuse(config, transformer)
        if reuse is not None and by_step is not None:
            # The run's first or last steps: what is there is of a run that was broken off, or of no more use.
            reuse.drop()
        if reason is not None:
            reuse = None
        if reuse is not None and step is not None:
            conditions = tuple(_tensors(x for name, x in given.items() if not _changes_by_step(name)))
            reuse.begin(timesteps, step, conditions, weights=(self.name, _adapters(transformer)), steps=steps)
        visual = family.visual if family.visual in ("first", "last") else given[family.visual]
        progress = step / steps if step is not None else 0.0
        return Forward(reason, step, progress, grids, visual, others, latent.device, parallel, reuse)

    @torch.compiler.disable
    def after(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Hook after each forward of this thread, with its output; None if it failed."""
        forward = self.now
        self._thread.forward = _OUTSIDE
        if forward.reuse is not None and output is None:
            forward.reuse.drop()
        elif forward.reuse is not None:
            forward.reuse.end()
        self._running.discard(threading.current_thread())
        if output is None or forward is _OUTSIDE or not torch.is_grad_enabled():
            return

        def resume(_: Tensor) -> None:
            self._thread.forward = _OUTSIDE if self._detached else forward

        for x in _tensors(output.values() if isinstance(output, Mapping) else [output]):
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
            self.kept = threading.local()

    def _reuse(self, config: PSAConfig | None, transformer: Any) -> StepReuse | None:
        """What layers keep from step to step, of this thread."""
        if config is None or config.reuse is None:
            return None
        if not hasattr(self.kept, "reuse"):
            layers = self.rules.reusing(len(self.family.layers(transformer)))
            self.kept.reuse = StepReuse(config.reuse, config.probe, layers)
        return self.kept.reuse

    def _step(self, transformer: Any, timestep: Tensor | float | None) -> tuple[int | None, Tensor | None]:
        try:
            return self.schedule.step(transformer, timestep)
        except ValueError:
            if self.rules.need_steps:
                raise
            return None, None


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among some values, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


_STATES = ("x", "t", "sigma", "audio_sigma", "vision_tokens", "sound_tokens", "action_tokens")


def _changes_by_step(name: str) -> bool:
    """Whether an argument of a transformer is of the state or the time of the denoising, and not a condition of it."""
    is_state = name in _STATES or (name.endswith("hidden_states") and "encoder" not in name)
    return is_state or "timestep" in name or "controlnet" in name


def _adapters(transformer: Any) -> Any:
    """Which LoRAs act in each layer that has any, and how strongly."""
    return [
        (tuple(layer.active_adapters), layer.disable_adapters, tuple(layer.merged_adapters), dict(layer.scaling))
        for layer in transformer.modules()
        if hasattr(layer, "lora_A")
    ]
