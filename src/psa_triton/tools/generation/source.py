"""Which model a name or a folder stands for, what it is run with, and which video sizes it can make."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import diffusers

from psa_triton.integrations.reuse import host_memory
from psa_triton.models import MODELS, ModelSpec, model_key, recognise
from psa_triton.names import unknown_name
from psa_triton.presets import VideoScale, load_presets_file
from psa_triton.tools.builtin import tiny_wan_path
from psa_triton.tools.generation.calls import call_name, is_modular, pipeline_call

_FPS_OF_UNKNOWN_MODELS = 16
_INDEXES: Final = ("model_index.json", "modular_model_index.json")
"""What a pipeline's folder tells its class in; the second, of a modular one, where the first is not there."""
_SIDES: Final = {"WanPipeline": 16}
"""Pixels that a pipeline wants sides to be multiples of, where a token of its model may be smaller."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model to load."""

    name: str
    """A key of the registry, or the full path of a folder with a model that was asked for by its folder."""
    location: str
    """Where diffusers finds it: a folder, or a repository on the Hugging Face hub."""
    pipeline: str
    """Name of the pipeline class in diffusers."""
    spec: ModelSpec | None
    """What it is run with; None for a folder with an unknown model."""

    @property
    def short_name(self) -> str:
        """Key, or name of the folder: a name for files."""
        return Path(self.name).name

    @property
    def weights(self) -> str:
        """Where the weights come from, the same on every machine where it is not a folder."""
        return "built-in" if self.spec is not None and self.spec.hub_id is None else self.location

    @property
    def is_folder(self) -> bool:
        """Whether it is on this machine, as a folder."""
        return Path(self.location).is_dir()

    @cached_property
    def call(self) -> Mapping[str, inspect.Parameter]:
        """What its pipeline is called with."""
        kind = getattr(diffusers, self.pipeline)
        if not is_modular(kind):
            return pipeline_call(kind)
        return pipeline_call(kind(pretrained_model_name_or_path=self.location if self.is_folder else None))

    @property
    def makes_images(self) -> bool:
        """Whether its pipeline makes images and no videos."""
        return not any(name == "num_frames" or "video" in name for name in self.call)

    def default(self, setting: str) -> Any:
        """What a setting is if nobody asks for anything else.

        Args:
            setting: a field of `ModelSpec` such as `width`. Unknown models get the default of their pipeline's call;
                None where it finds its own, or has no such setting. Images have no `fps`.
        """
        if self.spec is not None:
            return getattr(self.spec, setting)
        found = self.call.get(call_name(setting, self.call))
        if setting == "fps" and found is None:
            return None if self.makes_images else _FPS_OF_UNKNOWN_MODELS
        return None if found is None else found.default


def find_source(
    model: str, *, models: Mapping[str, ModelSpec] = MODELS, keys: Sequence[str] = (), weights: str | None = None
) -> ModelSource:
    """The model that a name or a folder stands for; a folder with a known model gets that model's settings.

    Args:
        model: a key of `models`, the name of its preset section, or the path of a folder as
            `DiffusionPipeline.save_pretrained` writes it.
        models: the known models by key.
        keys: those to choose from, the first of which has the settings for a folder whose model is not known; all, and
            no such settings, by default.
        weights: a pipeline folder, or a repository on the hub, to take in place of the key's own.

    Raises:
        ValueError: neither a key nor a folder, a folder that is not a pipeline's, or a folder and `weights`.
        FileNotFoundError: `weights` is no folder, or the built-in model is asked for and not part of this installation.
    """
    known = keys or models
    is_folder = Path(model).is_dir()
    if model not in known and model_key(model) in known and not is_folder:
        model = model_key(model)
    if model not in known:
        if not is_folder:
            raise ValueError(f"{unknown_name('model', model, known)}; nor is it the path of a folder")
        if weights is not None:
            raise ValueError(f"model_path: expected it with a known model's name, got it with the folder {model}")
        return _folder_source(model, models, models[keys[0]] if keys else None)
    spec = models[model] if weights is None else models[model].with_weights(weights)
    location = str(tiny_wan_path()) if spec.hub_id is None else _location(spec.hub_id, spec)
    return ModelSource(name=model, location=location, pipeline=spec.pipeline, spec=spec)


def _location(weights: str, spec: ModelSpec) -> str:
    """A folder that is here as its full path, a repository as it is."""
    folder = Path(weights).expanduser()
    if folder.is_dir():
        _check_pipeline(folder, _read_json(_index_of(folder)), spec)
        return str(folder.resolve())
    if _HUB_ID.fullmatch(weights) is None:
        raise FileNotFoundError(f"model_path: there is no pipeline folder {folder.absolute()}")
    return weights


def _index_of(folder: Path) -> Path:
    files = [folder / name for name in _INDEXES]
    return next((file for file in files if file.is_file()), files[0])


def _check_pipeline(folder: Path, index: dict[str, Any], spec: ModelSpec) -> None:
    if (found := index.get("_class_name")) != spec.pipeline:
        raise ValueError(f"model: expected a {spec.pipeline} as {spec.key} is, got a {found} in {folder}")


def _folder_source(folder: str, models: Mapping[str, ModelSpec], otherwise: ModelSpec | None) -> ModelSource:
    path = Path(folder).resolve()
    file = _index_of(path)
    index = _read_json(file)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or not hasattr(diffusers, pipeline):
        raise ValueError(f"model: {file} names the pipeline {pipeline!r}, which diffusers has not")
    second = index.get("transformer_2")
    has_second = isinstance(second, list) and second[:1] not in ([], [None])
    transformer = _read_json(path / "transformer" / "config.json")
    spec = recognise(transformer, two_transformers=has_second, models=models)
    if spec is None and otherwise is not None:
        _check_pipeline(path, index, otherwise)
        spec = otherwise
    if spec is not None:
        spec = spec.with_weights(str(path))
    return ModelSource(name=str(path), location=str(path), pipeline=pipeline, spec=spec)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"model: expected a pipeline folder as diffusers saves it, but there is no {file}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model: {file} is no JSON: {error}; copy it again from where the model is from") from error
    if not isinstance(data, dict):
        raise ValueError(f"model: expected a mapping in {file}, got {type(data).__name__}")
    return data


def video_scale(source: ModelSource) -> VideoScale | None:
    """Pixels and frames that a token of a known model stands for; else None."""
    return None if source.spec is None else load_presets_file().section(source.spec.preset_section).video_scale


def check_size(
    width: int | None,
    height: int | None,
    num_frames: int | None,
    scale: VideoScale,
    *,
    pipeline: str = "",
    positions: int | None = None,
    spare_frames: int = 1,
) -> None:
    """Check that a video is made of whole tokens, no more than the model has positions for, and fits into memory.

    Diffusers would round it with no more than a warning, or fail inside the model. None is what the pipeline finds
    itself.

    Args:
        width: in pixels.
        height: in pixels.
        num_frames: frames.
        scale: what a token stands for.
        pipeline: name of its class.
        positions: tokens along each side that the transformer's rotary table holds; None for any number.
        spare_frames: frames beyond whole tokens: 1 where the first frame has a token of its own, else 0.

    Raises:
        ValueError: naming the size at fault and the nearest that fit.
    """
    side = _SIDES.get(pipeline, 1)
    for name, value, token, step, spare, some in (
        ("width", width, scale.width_divisor, side, 0, "a"),
        ("height", height, scale.height_divisor, side, 0, "a"),
        ("num_frames", num_frames, scale.depth_divisor, 1, spare_frames, f"{spare_frames} + a"),
    ):
        if value is None:
            continue
        divisor = math.lcm(token, step)
        if value < 1 or value % divisor != spare % divisor:
            fits = max(spare or divisor, round((value - spare) / divisor) * divisor + spare)
            raise ValueError(f"{name}: expected {some} multiple of {divisor}, got {value}; {fits} fits")
        if positions is not None and value > (limit := (positions - spare) * token + spare):
            raise ValueError(f"{name}: expected at most {limit}, where the model's positions end, got {value}")
    # Three times in float32: as it is decoded, with values moved into [0, 1], and as an array.
    needed = 3 * 3 * 4 * (width or 1) * (height or 1) * (num_frames or 1)
    memory = host_memory()
    if needed > memory:
        raise ValueError(
            f"width, height, num_frames: expected a video that fits into this machine's {memory / 2**30:.1f} GiB of "
            f"memory, got {width} x {height} pixels and {num_frames} frames, which alone take {needed / 2**30:.1f} "
            "GiB while they are made; ask for a smaller one"
        )
