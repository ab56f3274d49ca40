"""What a pipeline is called with, of both kinds that diffusers has: classes with a signature, and modular ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from diffusers import ModularPipeline

_OTHER_NAMES: Final = {"num_frames": ("video_length",), "fps": ("frame_rate",)}
"""What some pipelines call what others call by the name of the setting."""
_GUIDERS: Final = {"guidance_scale": "guider", "guidance_scale_2": "guider_2"}
"""The components that hold these settings where a call does not take them."""


def is_modular(kind: type) -> bool:
    """Whether a pipeline class is of Modular Diffusers: made of blocks, which tell what it is called with."""
    return issubclass(kind, ModularPipeline)


def pipeline_call(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What a pipeline is called with, as far as people give it.

    Args:
        pipe: a pipeline, or its class; of modular ones the pipeline itself, its components loaded or not.
    """
    kind = pipe if isinstance(pipe, type) else type(pipe)
    if not is_modular(kind):
        return inspect.signature(kind.__call__).parameters
    inputs = {x.name: x for x in pipe.blocks.inputs if x.name is not None}
    scales = {name: getattr(getattr(pipe, guider, None), "guidance_scale", None) for name, guider in _GUIDERS.items()}
    defaults = {name: scale for name, scale in scales.items() if scale is not None}
    defaults |= {
        # Blocks also require of each other what no one gives to the first of them.
        name: inspect.Parameter.empty if x.required and name in ("prompt", "image") else x.default
        for name, x in inputs.items()
    }
    return {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in defaults.items()
    }


def call_name(setting: str, call: Mapping[str, Any]) -> str:
    """What a pipeline calls a setting, of all that it is called with."""
    return next((name for name in _OTHER_NAMES.get(setting, ()) if name in call), setting)


def run_pipeline(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """What a pipeline makes of the arguments of its call; guidance goes to the guiders of modular ones."""
    if not is_modular(type(pipe)):
        return pipe(**arguments)
    given, before = dict(arguments), {}
    own = {x.name for x in pipe.blocks.inputs}
    for setting, name in _GUIDERS.items():
        guider = getattr(pipe, name, None)
        if guider is not None and setting in given and setting not in own:
            before[name] = guider
            setattr(pipe, name, type(guider).from_config(guider.config, guidance_scale=given.pop(setting)))
    try:
        return pipe(**given)
    finally:
        for name, guider in before.items():
            setattr(pipe, name, guider)
