"""`apply_psa`: attach PSA to a diffusers pipeline or transformer; `PSAHandle`: report and detach."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.utils.torch_utils import is_compiled_module
from torch.utils.hooks import RemovableHandle

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl, check_impl
from psa_triton.importance import estimation_cost
from psa_triton.inputs import as_count, as_indexes
from psa_triton.integrations.diffusers import cogvideox, wan
from psa_triton.integrations.diffusers.pipelines import is_pipeline, transformers_of
from psa_triton.integrations.diffusers.processor import PSAProcessor
from psa_triton.integrations.diffusers.rules import DenseRules
from psa_triton.integrations.diffusers.scale import check_video_scale
from psa_triton.integrations.diffusers.state import ForwardState, OnLevels
from psa_triton.integrations.diffusers.stats import PSAStats, Recorder
from psa_triton.integrations.diffusers.steps import Schedule
from psa_triton.integrations.removal import ATTACHED_ALREADY, ATTACHMENT
from psa_triton.integrations.wrappers import held_models, library, unwrap
from psa_triton.models import recognise
from psa_triton.presets import DENSE, resolve

Transformer: TypeAlias = WanTransformer3DModel | WanVACETransformer3DModel | CogVideoXTransformer3DModel


@dataclass(frozen=True)
class _Family:
    """What attaching needs to know of a transformer class."""

    processor: type[PSAProcessor]
    attentions: Callable[[Transformer], list[Any]]
    register_hooks: Callable[[Transformer, ForwardState], list[RemovableHandle]]


_FAMILIES = {
    WanTransformer3DModel: _Family(wan.WanPSAProcessor, wan.attentions, wan.register_hooks),
    WanVACETransformer3DModel: _Family(wan.WanPSAProcessor, wan.vace_attentions, wan.register_vace_hooks),
    CogVideoXTransformer3DModel: _Family(
        cogvideox.CogVideoXPSAProcessor, cogvideox.attentions, cogvideox.register_hooks
    ),
}


@dataclass(frozen=True, eq=False)
class _Attachment:
    """The attention layers of one transformer with the processors they got, and its hooks.

    The transformer keeps it, so that a copy has one of its own, of its own layers and hooks.
    """

    transformer: Transformer
    state: ForwardState
    hooks: list[RemovableHandle]
    processors: list[tuple[Any, PSAProcessor]]

    def check(self, *_: Any) -> None:
        """Hook before each forward: without our processors, nothing would be sparse and nobody would notice.

        Raises:
            RuntimeError: if a processor was replaced.
        """
        for layer, (attn, processor) in enumerate(self.processors):
            if attn.processor is not processor:
                raise RuntimeError(
                    f"the attention processor of layer {layer} was replaced by a {type(attn.processor).__name__} after "
                    "apply_psa; call remove() on its handle or psa_triton.remove_psa(model), then change processors "
                    "(e.g. fuse_qkv_projections), then apply_psa again"
                )

    def end(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook after each forward, failed ones too."""
        self.state.end(output)

    def detach(self) -> None:
        """Undo; again is fine. A processor that someone replaced in the meantime is theirs and stays.

        Raises:
            RuntimeError: if the transformer runs in another thread.
        """
        self.state.detach()
        for attn, processor in self.processors:
            if attn.processor is processor:
                attn.set_processor(processor.dense)
        for hook in self.hooks:
            hook.remove()
        # Code that was compiled with the hooks may go on calling them.
        self.processors.clear()
        if vars(self.transformer).get(ATTACHMENT) is self:
            delattr(self.transformer, ATTACHMENT)


class PSAHandle:
    """PSA as attached by `apply_psa`. Also a context manager that detaches at its end.

    Attributes:
        config: the attention in use; None where the preset is dense.
    """

    def __init__(self, config: PSAConfig | None, recorder: Recorder, attachments: list[_Attachment]) -> None:
        self.config = config
        self._recorder = recorder
        self._attachments = attachments

    def stats(self) -> PSAStats:
        """What ran since attaching or the last `reset`: per layer and step, and in sum. Waits for the device."""
        return self._recorder.stats()

    def reset(self) -> None:
        """Forget what ran so far."""
        self._recorder.reset()

    def remove(self) -> None:
        """Put the processors back that were there before, and remove every hook. Again is fine.

        Copies of the model that were made in the meantime stay attached: `psa_triton.remove_psa` detaches them.

        Raises:
            RuntimeError: if a transformer is running in another thread.
        """
        while self._attachments:
            self._attachments[-1].detach()
            self._attachments.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def apply_psa(
    pipe_or_transformer: Any,
    config_or_preset: PSAConfig | str | None = None,
    *,
    scheduler: Any = None,
    impl: Impl = "auto",
    min_tokens: int | None = None,
    dense_last_steps: int = 0,
    dense_layers: Collection[int] = (),
    time_layers: bool = False,
    on_levels: OnLevels | None = None,
) -> PSAHandle:
    """Attach PSA to the self-attention of a Wan, Wan VACE or CogVideoX transformer, until the handle's `remove`.

    Only public means are used: attention processors and forward hooks. Tokens and rotary tables are put in the order
    of the configuration once per forward and restored after the last block. Dense steps run the processors that were
    there before, on tokens in their own order: their results are the same bits as without PSA. (With a step cache they
    run on reordered tokens too, since what is cached in one step is used in others.)

    LoRAs may be loaded, fused and unloaded at any time, and caches and offloading enabled. `torch.compile` comes after
    attaching; the attention layers stay outside its graphs, so that `fullgraph=True` is not for it. Pipelines may share
    the transformer, and threads run it at the same time: the step is read off the scheduler of the pipeline whose call
    is running. Copies of the model are attached as well, count for themselves and tell `on_levels` nothing;
    `psa_triton.remove_psa` detaches them.

    Context parallelism is enabled by the transformer's `enable_parallelism`, before or after attaching, with a
    `ContextParallelConfig(ulysses_degree=...)`; `ulysses_anything=True` (diffusers 0.37) lets tokens and heads be any
    number, and CogVideoX wants `cp_plan=cogvideox_context_parallel_plan()`. Densities in the statistics are of the
    process's own heads then.

    Args:
        pipe_or_transformer: a pipeline, modular or not, with a `transformer`, a `transformer_2` or both; or a
            transformer. A transformer may be wrapped by PEFT, `DistributedDataParallel` or the like.
        config_or_preset: a configuration; a preset's name in the section of the recognised model; "SECTION/PRESET";
            `dense`; None for the default preset of the recognised model.
        scheduler: tells the denoising step of forwards outside of a pipeline's call; by default the pipeline's,
            whichever it has at the time. If steps matter (`warmup_steps`, `dense_last_steps`, a `budget_table`), a
            forward whose step cannot be told raises a ValueError.
        impl: implementation of the operator, as in `psa_attention`.
        min_tokens: shorter sequences run dense; 0 for none. By default those of fewer than eight key blocks, and on a
            CPU those of fewer than 1,024 tokens, on which dense attention is faster (`benchmarks/break_even.py`). On a
            GPU nothing has been measured yet.
        dense_last_steps: number of denoising steps at the end that run dense, like `config.warmup_steps` at the start.
        dense_layers: indexes of the blocks, of each transformer, that run dense in every step.
        time_layers: take the wall-clock time of each attention call (on a GPU this waits for it twice a call).
        on_levels: told what each sparse call read, after it and outside its time; layers recomputed by gradient
            checkpointing are told of again.

    Returns:
        The handle to read statistics from and to detach with.

    Raises:
        TypeError: if an argument is of a class or type that isn't supported.
        ValueError: if PSA is attached already or the transformer compiled already; if a preset is asked for by name and
            the model isn't recognised; if `video_scale` of its section is not the pipeline's; if there are dense steps
            and no scheduler to tell them by; if `min_tokens`, `dense_last_steps` or `dense_layers` is out of range; if
            `config.budget_table` has another number of layers.
    """
    transformers = _transformers(pipe_or_transformer)
    for name, transformer in transformers.items():
        _check_unattached(name, transformer)
        _check_uncompiled(name, transformer)
    pipe = pipe_or_transformer if is_pipeline(pipe_or_transformer) else None
    transformers = {name: unwrap(transformer) for name, transformer in transformers.items()}
    config = _config(pipe, config_or_preset, transformers)
    rules = DenseRules(
        config,
        None if min_tokens is None else as_count("min_tokens", min_tokens),
        as_count("dense_last_steps", dense_last_steps),
        as_indexes("dense_layers", dense_layers),
    )
    for transformer in transformers.values():
        rules.check(layers=layer_count(transformer))
    if scheduler is not None and not hasattr(scheduler, "timesteps"):
        raise TypeError(f"scheduler: expected a diffusers scheduler with timesteps, got {type(scheduler).__name__}")
    schedule = Schedule(pipe, scheduler)
    if rules.need_steps and schedule.scheduler is None:
        raise ValueError(
            f"scheduler: expected one, as warmup_steps = {config and config.warmup_steps} and dense_last_steps = "
            f"{dense_last_steps}, or the {config and len(config.budget_table)} rows of budget_table, go by the "
            "denoising step, which a transformer alone does not know; pass scheduler=, or the pipeline, or have none "
            "of these"
        )
    recorder = Recorder(
        estimation_cost=0.0 if config is None else estimation_cost(config.importance, config.block_m, config.block_n),
        timed=time_layers or (config is not None and config.verbose),
    )
    attachments = [
        _attach(
            transformer,
            ForwardState(name, rules, schedule=schedule, recorder=recorder, impl=check_impl(impl), on_levels=on_levels),
        )
        for name, transformer in transformers.items()
    ]
    return PSAHandle(config, recorder, attachments)


def _attach(transformer: Transformer, state: ForwardState) -> _Attachment:
    family = _family(transformer)
    attachment = _Attachment(transformer, state, family.register_hooks(transformer, state), [])
    attachment.hooks.append(transformer.register_forward_pre_hook(attachment.check))
    attachment.hooks.append(transformer.register_forward_hook(attachment.end, always_call=True))
    for layer, attn in enumerate(family.attentions(transformer)):
        processor = family.processor(attn.processor, layer, state)
        attn.set_processor(processor)
        attachment.processors.append((attn, processor))
    setattr(transformer, ATTACHMENT, attachment)
    return attachment


def layer_count(transformer: Any) -> int:
    """Attention layers that PSA attaches to; those of VACE's control blocks come last.

    Raises:
        TypeError: a transformer that is not supported.
    """
    transformer = unwrap(transformer)
    return len(_family(transformer).attentions(transformer))


def _family(transformer: Any) -> _Family:
    for model, family in _FAMILIES.items():
        if isinstance(transformer, model):
            return family
    raise _unsupported(transformer)


def _unsupported(target: Any) -> TypeError:
    if library(target) == "transformers":
        return TypeError(
            f"pipe_or_transformer: expected a diffusion model, got {type(target).__name__} of transformers; pass it to "
            "psa_triton.apply_psa or psa_triton.integrations.transformers.apply_psa"
        )
    known = ", ".join(model.__name__ for model in _FAMILIES)
    inside = next((name for name, part in held_models(target) if isinstance(part, tuple(_FAMILIES))), None)
    advice = "" if inside is None else f"; it has one: pass its `{inside}`"
    return TypeError(
        f"pipe_or_transformer: expected a transformer of class {known}, or a pipeline with one, "
        f"got {type(target).__name__}{advice}"
    )


def _transformers(target: Any) -> dict[str, Any]:
    """The supported transformers of a pipeline by the names they have there, as it holds them: wrapped perhaps."""
    if not is_pipeline(target):
        _family(unwrap(target))
        return {"transformer": target}
    found = transformers_of(target, tuple(_FAMILIES))
    if not found:
        raise TypeError(
            f"pipe_or_transformer: expected a pipeline with a transformer, got {type(target).__name__} without one, "
            "or that has not loaded it (load_components of a modular pipeline)"
        )
    for transformer in found.values():
        _family(unwrap(transformer))
    return found


def _check_uncompiled(name: str, target: torch.nn.Module) -> None:
    if any(is_compiled_module(module) or module._compiled_call_impl is not None for module in target.modules()):
        raise ValueError(
            f"pipe_or_transformer: its {name} is compiled already, and compiled code does not see hooks and processors "
            "that come later; call apply_psa first, then compile"
        )


def _check_unattached(name: str, target: torch.nn.Module) -> None:
    if ATTACHMENT in vars(unwrap(target)):
        raise ValueError(f"pipe_or_transformer: PSA is attached to its {name} already; {ATTACHED_ALREADY}")


def _config(pipe: Any, config_or_preset: Any, transformers: dict[str, Transformer]) -> PSAConfig | None:
    """The configuration asked for; None for a dense preset."""
    if isinstance(config_or_preset, PSAConfig):
        return config_or_preset
    if not isinstance(config_or_preset, str | None):
        raise TypeError(
            "config_or_preset: expected a PSAConfig, a preset's name, 'SECTION/PRESET' or None, "
            f"got {type(config_or_preset).__name__}"
        )
    if config_or_preset == DENSE.name or "/" in (config_or_preset or ""):
        return resolve(config_or_preset).config
    section = _section(config_or_preset, transformers)
    found = resolve(config_or_preset, section)
    if pipe is not None and found.video_scale is not None:
        check_video_scale(pipe, section, found.video_scale)
    return found.config


def _section(preset: str | None, transformers: dict[str, Transformer]) -> str:
    transformer = next(iter(transformers.values()))
    described = {**transformer.config, "_class_name": type(transformer).__name__}
    spec = recognise(described, two_transformers="transformer_2" in transformers)
    if spec is None:
        raise ValueError(
            f"config_or_preset: got {preset!r}, but this {type(transformer).__name__} is no known checkpoint, "
            "so it has no presets; pass a PSAConfig, or 'SECTION/PRESET' to borrow a known model's preset"
        )
    return spec.preset_section
