"""`apply_psa`: attach PSA to a diffusers pipeline or transformer."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from diffusers.utils.torch_utils import is_compiled_module
from torch import nn
from torch.utils.hooks import RemovableHandle

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.integrations.diffusers.families import FAMILIES, family_name
from psa_triton.integrations.diffusers.forward import ForwardState, OnLevels
from psa_triton.integrations.diffusers.intercept import PSAProcessor, wrap_processor
from psa_triton.integrations.diffusers.pipelines import check_video_scale, is_pipeline, transformers_of
from psa_triton.integrations.diffusers.stats import PSAStats
from psa_triton.integrations.diffusers.steps import Schedule
from psa_triton.integrations.handle import ATTACHED_ALREADY, ATTACHMENT, PSAHandle, find_config
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder
from psa_triton.integrations.wrappers import library, unsupported, unwrap
from psa_triton.models import GENERAL_SECTION, recognise
from psa_triton.presets import DENSE, resolve


@dataclass(frozen=True, eq=False)
class _Attachment:
    """The attention layers of one transformer with the processors they got, and its hooks.

    The transformer keeps it, so that a copy has one of its own, of its own layers and hooks.
    """

    transformer: nn.Module
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

    def detach(self) -> None:
        """Undo; again is fine. A processor that someone replaced in the meantime is theirs and stays.

        Raises:
            RuntimeError: if the transformer runs in another thread.
        """
        self.state.detach()
        for attn, processor in self.processors:
            if attn.processor is processor:
                _set_processor(attn, processor.dense)
        for hook in self.hooks:
            hook.remove()
        # Code that was compiled with the hooks may go on calling them.
        self.processors.clear()
        if vars(self.transformer).get(ATTACHMENT) is self:
            delattr(self.transformer, ATTACHMENT)


def apply_psa(
    pipe_or_transformer: Any,
    config_or_preset: PSAConfig | str | None = None,
    *,
    scheduler: Any = None,
    impl: Impl = "auto",
    max_error: float | None = None,
    min_tokens: int | None = None,
    dense_last_steps: int = 0,
    dense_layers: Collection[int] = (),
    time_layers: bool = False,
    on_levels: OnLevels | None = None,
) -> PSAHandle[PSAStats]:
    """Attach PSA to the attention over visual tokens of a diffusion transformer, until the handle's `remove`.

    Only public means are used: attention processors and forward hooks. A layer's own processor runs as it is, and the
    `scaled_dot_product_attention` inside it is answered by PSA, on tokens in the order of the configuration. Dense
    steps run the processors as they were: their results are the same bits as without PSA. What else must be known of a
    transformer is its row in the table of families; `register_family` adds one.

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
        config_or_preset: a configuration; a preset's name in the section of the recognised model, or in section
            `general` of others; "SECTION/PRESET"; `dense`; None for the default preset of that section.
        scheduler: tells the denoising step of forwards outside of a pipeline's call; by default the pipeline's,
            whichever it has at the time. If steps matter (`warmup_steps`, `dense_last_steps`, a `budget_table`), a
            forward whose step cannot be told raises a ValueError.
        impl: implementation of the operator, as in `psa_attention`.
        max_error: bound on the relative error of attention, measured by a probe in each call: a layer repeats its last
            output, runs sparse with what that lacked when it was last compared with dense attention, or runs dense,
            whichever is the cheapest within the bound. Instead of the configuration's warm-up and rhythm of reuse.
        min_tokens: shorter sequences run dense; 0 for none. By default those of fewer than eight key blocks, and with
            `impl="auto"` on a CPU those on which dense attention is faster (`integrations/break_even.py`). On a GPU
            nothing has been measured yet.
        dense_last_steps: number of denoising steps at the end that run dense, like `config.warmup_steps` at the start.
        dense_layers: indexes of the attention layers, of each transformer, that run dense in every step.
        time_layers: take the wall-clock time of each attention call (on a GPU this waits for it twice a call).
        on_levels: told what each sparse call read, after it and outside its time; layers recomputed by gradient
            checkpointing are told of again.

    Returns:
        The handle to read statistics from and to detach with.

    Raises:
        TypeError: if an argument is of a class or type that isn't supported.
        ValueError: if PSA is attached already, the transformer compiled already, or a pattern of its family names no
            layer; if there is no such preset; if `video_scale` of its section is not the pipeline's; if there are dense
            steps and no scheduler to tell them by; if `min_tokens`, `dense_last_steps` or `dense_layers` is out of
            range; if `config.budget_table` has another number of layers.
    """
    transformers = _transformers(pipe_or_transformer)
    pipe = pipe_or_transformer if is_pipeline(pipe_or_transformer) else None
    config = find_config(config_or_preset, lambda name: _preset(name, pipe, transformers))
    if max_error is not None:
        if config is None:
            raise ValueError(f"max_error: expected None with dense attention, which has no error, got {max_error}")
        config = config.bounded(max_error)
    rules = DenseRules.checked("diffusion", config, impl, min_tokens, dense_layers, dense_last_steps)
    for transformer in transformers.values():
        rules.check_layers(range(layer_count(transformer)))
    if scheduler is not None and not hasattr(scheduler, "timesteps"):
        raise TypeError(f"scheduler: expected a diffusers scheduler with timesteps, got {type(scheduler).__name__}")
    schedule = Schedule(pipe, scheduler)
    if rules.need_steps and schedule.scheduler is None:
        raise ValueError(
            f"scheduler: expected one, as warmup_steps = {config and config.warmup_steps} and dense_last_steps = "
            f"{dense_last_steps}, or the {config and len(config.budget_table)} rows of budget_table, go by the "
            "denoising step, which a transformer alone does not know, as does reuse; pass scheduler=, or the pipeline, "
            "or have none of these"
        )
    recorder = Recorder(PSAStats.of, time_layers or (config is not None and config.verbose))
    kept = threading.local()
    attachments = [
        _attach(transformer, ForwardState(name, _family_name(transformer), rules, schedule, recorder, on_levels, kept))
        for name, transformer in transformers.items()
    ]
    return PSAHandle(config, recorder, attachments)


def _attach(transformer: Any, state: ForwardState) -> _Attachment:
    attachment = _Attachment(transformer, state, [], [])
    attachment.hooks.append(transformer.register_forward_pre_hook(state.before, with_kwargs=True))
    attachment.hooks.append(transformer.register_forward_pre_hook(attachment.check))
    attachment.hooks.append(transformer.register_forward_hook(state.after, always_call=True))
    for layer, attn in enumerate(state.family.layers(transformer)):
        processor = wrap_processor(attn.processor, layer, state)
        _set_processor(attn, processor)
        attachment.processors.append((attn, processor))
    setattr(transformer, ATTACHMENT, attachment)
    return attachment


def _set_processor(attn: Any, processor: Any) -> None:
    # Not every attention module of diffusers has the method.
    set_processor = getattr(attn, "set_processor", None)
    if set_processor is None:
        attn.processor = processor
    else:
        set_processor(processor)


def layer_count(transformer: Any) -> int:
    """Attention layers that PSA attaches to; those of VACE's control blocks come last.

    Raises:
        TypeError: a transformer that is not supported.
        ValueError: a pattern of its family names no layer.
    """
    transformer = unwrap(transformer)
    return len(FAMILIES[_family_name(transformer)].layers(transformer))


def _family_name(target: Any) -> str:
    if (name := family_name(target)) is not None:
        return name
    expected = "a diffusion model"
    if library(target) != "transformers":
        expected = f"a transformer of class {', '.join(FAMILIES)} or one of register_family, or a pipeline with one"
    raise unsupported("pipe_or_transformer", expected, target, family_name, "diffusers")


def _transformers(target: Any) -> dict[str, Any]:
    """The transformers to attach to by the names they have in a pipeline, without what is wrapped around them."""
    found = transformers_of(target) if is_pipeline(target) else {"transformer": target}
    if not found:
        raise TypeError(
            f"pipe_or_transformer: expected a pipeline with a transformer, got {type(target).__name__} without one, "
            "or that has not loaded it (load_components of a modular pipeline)"
        )
    inner = {name: unwrap(transformer) for name, transformer in found.items()}
    for name, transformer in inner.items():
        _family_name(transformer)
        if ATTACHMENT in vars(transformer):
            raise ValueError(f"pipe_or_transformer: PSA is attached to its {name} already; {ATTACHED_ALREADY}")
        modules = found[name].modules()
        if any(is_compiled_module(module) or module._compiled_call_impl is not None for module in modules):
            raise ValueError(
                f"pipe_or_transformer: its {name} is compiled already, and compiled code does not see hooks and "
                "processors that come later; call apply_psa first, then compile"
            )
    return inner


def _preset(name: str | None, pipe: Any, transformers: dict[str, nn.Module]) -> PSAConfig | None:
    """The configuration of a preset, in the section of the model; None for a dense one."""
    if name == DENSE.name or "/" in (name or ""):
        return resolve(name).config
    transformer: Any = next(iter(transformers.values()))
    described = {**transformer.config, "_class_name": type(transformer).__name__}
    spec = recognise(described, two_transformers="transformer_2" in transformers)
    found = resolve(name, GENERAL_SECTION if spec is None else spec.preset_section)
    if pipe is not None and spec is not None and found.video_scale is not None:
        check_video_scale(pipe, spec.preset_section, found.video_scale)
    return found.config
