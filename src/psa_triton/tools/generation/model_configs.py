"""`examples/configs/model_configs.py`: the file where people change a known model's settings for their checkout."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

import psa_triton
from psa_triton.mistakes import mistake
from psa_triton.models import MODELS, ModelSpec
from psa_triton.names import unknown_name

_PACKAGE = Path(psa_triton.__file__).parent
_CHECKOUT = _PACKAGE.parents[1]


_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Guidance = Annotated[float, Field(ge=0)]


class ModelConfig(TypedDict, total=False):
    """What the file may say of a model; everything left out stays as the registry has it."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    model_id: _Text
    lora_path: _Text
    preset: _Text
    width: _Count
    height: _Count
    num_frames: _Count
    num_inference_steps: _Count
    guidance_scale: _Guidance
    guidance_scale_2: _Guidance
    fps: _Count
    cpu_offload: bool
    vae_tiling: bool
    vae_slicing: bool


_CONFIG = TypeAdapter(ModelConfig)


def checkout_model_configs() -> Path | None:
    """The file of the checkout that this library runs from; None if it was installed without one."""
    file = _CHECKOUT / "examples" / "configs" / "model_configs.py"
    # Outside `src` the package is installed, and a file that lies so is somebody else's: it is not to be run.
    return file if _PACKAGE.parent.name == "src" and file.is_file() else None


def configured_models(file: Path | None) -> Mapping[str, ModelSpec]:
    """The known models with the changes that a `model_configs.py` makes to them.

    The file is imported as the plain Python it is; nothing in it is called.

    Args:
        file: it defines `MODEL_CONFIGS`, a dict of settings by model; None for no changes.

    Raises:
        ValueError: the file is no Python, has no such dict, or a model or setting in it is unknown or out of range.
    """
    if file is None:
        return MODELS
    models = dict(MODELS)
    for key, config in _read(file).items():
        changes = dict[str, Any](config)
        spec = models[key].with_weights(changes.pop("model_id", models[key].hub_id))
        models[key] = replace(spec, **changes)
    return models


def _read(file: Path) -> dict[str, ModelConfig]:
    try:
        rows = runpy.run_path(str(file)).get("MODEL_CONFIGS")
    except Exception as error:  # whatever a person's edit can raise
        raise ValueError(f"{file}: could not be imported: {type(error).__name__}: {error}") from error
    if not isinstance(rows, dict):
        raise ValueError(f"{file}: expected a dict MODEL_CONFIGS, got {type(rows).__name__}")
    configs = {}
    for key, row in rows.items():
        if key not in MODELS:
            raise ValueError(f"{file}: {unknown_name('model', str(key), MODELS)}")
        try:
            configs[key] = _CONFIG.validate_python(row)
        except ValidationError as error:
            details = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in (key, *details["loc"]))
            raise ValueError(f"{file}: {mistake(place, details, list(ModelConfig.__annotations__))}") from error
    return configs
