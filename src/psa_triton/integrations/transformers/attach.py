"""`apply_psa`: attach PSA to a transformers model; `PSAHandle`: report and detach."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard
from weakref import WeakValueDictionary

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.integrations.handle import ATTACHED_ALREADY, ATTACHMENT, PSAHandle, find_config
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder
from psa_triton.integrations.transformers.attention import LAYER_ATTRIBUTE, NAME, AttachedLayer
from psa_triton.integrations.transformers.rules import check_causal
from psa_triton.integrations.transformers.stats import PSAStats
from psa_triton.integrations.wrappers import library, unsupported, unwrap
from psa_triton.models import QWEN2_5_VL
from psa_triton.presets import resolve


@dataclass(frozen=True, eq=False)
class _Attachment:
    """A text model that runs `psa`, and the layers that know how; the text model keeps it, and so do its copies."""

    text_model: PreTrainedModel
    previous: dict[PreTrainedModel, str]
    """Attention implementations of the text model and the models in it, the outer ones first."""
    modules: list[nn.Module]

    def detach(self) -> None:
        """Undo; again is fine. An attention implementation that somebody set in the meantime is theirs and stays."""
        if not self.modules:
            return
        for module in self.modules:
            delattr(module, LAYER_ATTRIBUTE)
        self.modules.clear()
        delattr(self.text_model, ATTACHMENT)
        _BY_CONFIG.pop(id(self.text_model.config), None)
        _put_back(self.previous)


_BY_CONFIG: WeakValueDictionary[int, _Attachment] = WeakValueDictionary()
"""Attachments by the `id` of the configuration that says `psa` for them: models that share one would detach each
other."""


def _put_back(previous: dict[PreTrainedModel, str]) -> None:
    """Outer models first, since setting theirs sets those of all models inside."""
    now = {model: model.config._attn_implementation for model in previous}
    for model, name in previous.items():
        model.set_attn_implementation(name if now[model] == NAME else now[model])


def apply_psa(
    model: Any,
    config_or_preset: PSAConfig | str | None = None,
    *,
    impl: Impl = "auto",
    min_tokens: int | None = None,
    dense_layers: Collection[int] = (),
    time_layers: bool = False,
) -> PSAHandle[PSAStats]:
    """Let the text model of a transformers model prefill with PSA, until the handle's `remove`.

    Only its attention implementation is changed, to `psa`, and what is asked for here is left at its attention layers.
    A vision tower keeps its own. Caches, masks and `generate` work as before; `handle.stats()` says what ran sparse,
    what dense, and why.

    `torch.compile` may come before or after; attention layers stay outside its graphs but for decode steps, which are
    not counted when compiled.

    Args:
        model: any model whose text layers take their attention from transformers' `AttentionInterface`; one that is
            wrapped, by PEFT, `torch.compile` or `DistributedDataParallel`, say; or what `transformers.pipeline` makes.
        config_or_preset: a configuration; a preset's name in section `Qwen2.5-VL`; "SECTION/PRESET"; `dense`; None
            for the default preset of `Qwen2.5-VL`.
        impl: implementation of the operator, as in `psa_attention`.
        min_tokens: sequences of fewer keys run dense; by default those of fewer than three key blocks, and with
            `impl="auto"` on a CPU those on which dense attention is faster.
        dense_layers: indexes of the text layers that run dense.
        time_layers: take the wall-clock time of each attention call (on a GPU this waits for it twice a call).

    Returns:
        The handle to read statistics from and to detach with.

    Raises:
        TypeError: if an argument is of a class that isn't supported.
        ValueError: if PSA is attached already, to this model or to another with the same `config` object, the model has
            no exchangeable attention, the configuration has no causal form, or a number is out of range.
    """
    model = _model(model)
    config = find_config(config_or_preset, lambda name: resolve(name, QWEN2_5_VL.preset_section).config)
    if config is not None:
        check_causal(config)
    rules = DenseRules.checked("language", config, impl, min_tokens, dense_layers)
    if any(hasattr(module, LAYER_ATTRIBUTE) for module in model.modules()):
        raise ValueError(f"model: PSA is attached to it already; {ATTACHED_ALREADY}")
    recorder: Recorder[PSAStats] = Recorder(PSAStats.of, timed=time_layers or (config is not None and config.verbose))
    decoder = model.get_decoder()
    text_model = decoder if isinstance(decoder, PreTrainedModel) else model
    if id(text_model.config) in _BY_CONFIG:
        raise ValueError(
            "model: it has its configuration in common with another model that PSA is attached to, and there the name "
            "of its attention stands; build one of them from copy.deepcopy(config)"
        )
    inside = [part for part in text_model.modules() if isinstance(part, PreTrainedModel)]
    previous = {part: part.config._attn_implementation for part in inside}
    text_model.set_attn_implementation(NAME)
    _put_back({part: name for part, name in previous.items() if part.main_input_name != "input_ids"})
    try:
        layers = _layers(model, text_model, rules, recorder)
    except ValueError:
        _put_back(previous)
        raise
    for module, layer in layers.items():
        setattr(module, LAYER_ATTRIBUTE, layer)
    attachment = _Attachment(text_model, previous, list(layers))
    setattr(text_model, ATTACHMENT, attachment)
    _BY_CONFIG[id(text_model.config)] = attachment
    return PSAHandle(config, recorder, [attachment])


def _model(target: Any) -> PreTrainedModel:
    """The model itself, without wrappers around it."""
    is_pipeline = library(target) == "transformers" and not isinstance(target, nn.Module)
    model = unwrap(target.model if is_pipeline else target)
    if _is_language_model(model):
        return model
    raise unsupported("model", "a transformers PreTrainedModel", model, _is_language_model, "transformers")


def _is_language_model(target: Any) -> TypeGuard[PreTrainedModel]:
    return isinstance(target, PreTrainedModel)


def _layers(
    model: PreTrainedModel, text_model: PreTrainedModel, rules: DenseRules, recorder: Recorder[PSAStats]
) -> dict[nn.Module, AttachedLayer]:
    """What each attention module of a model whose text model runs `psa` is to know."""
    text = list(_attention_modules(text_model))
    if not text:
        raise ValueError(
            "model: expected text layers that take their attention from transformers' AttentionInterface, which those "
            f"of {type(text_model).__name__} do not"
        )
    others = [module for module in _attention_modules(model) if module not in text]
    layers = {
        module: AttachedLayer(part, _index(module, position), rules, recorder)
        for part, modules in (("text", text), ("other", others))
        for position, module in enumerate(modules)
    }
    rules.check_layers([layers[module].layer for module in text])
    return layers


def _attention_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that look up their attention under the name `psa`."""
    for module in model.modules():
        config = getattr(module, "config", None)
        named = isinstance(config, PreTrainedConfig) and config._attn_implementation == NAME
        if named and any("Attention" in base.__name__ for base in type(module).__mro__):
            yield module


def _index(module: nn.Module, position: int) -> int:
    """The index of a layer that knows it; else its position."""
    index = getattr(module, "layer_idx", None)
    return position if index is None else index
