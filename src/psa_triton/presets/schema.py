"""What `configs/attention_config.yaml` may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from psa_triton.config import PSAConfig
from psa_triton.mistakes import shown

_BLOCK_SIZE = "block_size"
# The file nests the block sizes; PSAConfig has them flat. The aliases make errors speak of the file's keys.
_FILE_KEYS = {"block_m": f"{_BLOCK_SIZE}.m", "block_n": f"{_BLOCK_SIZE}.n", "tile_n": f"{_BLOCK_SIZE}.tile_n"}

Divisor = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DensePreset(_Strict):
    """`type: dense`: ordinary attention, the baseline."""

    type: Literal["dense"]
    """Dense attention."""
    description: str = ""
    """What the preset is for, in words."""

    def config(self) -> None:
        """None: there is nothing sparse to configure."""


class PsaPreset(PSAConfig):
    """`type: psa`: the fields of `PSAConfig`, with the block sizes under the one key `block_size`."""

    model_config = ConfigDict(alias_generator=lambda name: _FILE_KEYS.get(name, name))

    type: Literal["psa"]
    """Pyramid sparse attention."""

    @model_validator(mode="before")
    @classmethod
    def _flatten_block_size(cls, data: Any) -> Any:
        if not isinstance(data, dict) or _BLOCK_SIZE not in data:
            return data
        sizes = data[_BLOCK_SIZE]
        if not isinstance(sizes, dict):
            raise ValueError(f"{_BLOCK_SIZE}: expected a mapping with m, n and tile_n, got {shown(sizes)}")
        rest = {key: value for key, value in data.items() if key != _BLOCK_SIZE}
        flat = {f"{_BLOCK_SIZE}.{key}": value for key, value in sizes.items()}
        if twice := rest.keys() & flat.keys():
            raise ValueError(f"{_BLOCK_SIZE}: expected each size once, got {min(twice)} beside it, too")
        return rest | flat

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        properties = schema["properties"]
        sizes = {key.removeprefix(f"{_BLOCK_SIZE}."): properties.pop(key) for key in _FILE_KEYS.values()}
        properties[_BLOCK_SIZE] = {
            "type": "object",
            "description": "Tokens of a query block (m), of a key block (n), and rows a kernel loads (tile_n).",
            "properties": sizes,
            "additionalProperties": False,
        }
        return schema

    def config(self) -> PSAConfig:
        """The attention that this preset describes."""
        return PSAConfig(**self.model_dump(exclude={"type"}))


def check_preset_name(name: str) -> str:
    """The name of a preset, which SECTION/PRESET is told apart by.

    Raises:
        ValueError: it is empty, has a slash, or stands for dense attention of any model.
    """
    if not name or "/" in name or name == "dense":
        raise ValueError(f"expected a name without /, and other than dense, got {name!r}")
    return name


Preset = Annotated[PsaPreset | DensePreset, Field(discriminator="type")]


class VideoScale(_Strict):
    """How many pixels or frames of a video one token stands for (compression or merging, times patch size)."""

    width_divisor: Divisor
    """Pixels of width per token."""
    height_divisor: Divisor
    """Pixels of height per token."""
    depth_divisor: Divisor
    """Frames per token; in models that make videos the first frame has a token of its own."""

    def grid(self, width: int, height: int, frames: int) -> tuple[int, int, int]:
        """Tokens of a video of so many pixels and frames, as (frames, height, width)."""
        return (frames - 1) // self.depth_divisor + 1, height // self.height_divisor, width // self.width_divisor


class ModelSection(_Strict):
    """One model's section: how its tokens come about, and its presets."""

    default_attention: str
    """The preset that is used when none is asked for; a name in `attention_configs`."""
    video_scale: VideoScale
    """From the size of a video to the grid of its tokens."""
    text_length: int = Field(ge=0)
    """Text tokens in front of the visual tokens in self-attention; 0 where text stands apart, or anywhere."""
    attention_configs: dict[Annotated[str, AfterValidator(check_preset_name)], Preset] = Field(min_length=1)
    """The presets, by name."""


SECTIONS: TypeAdapter[dict[str, ModelSection]] = TypeAdapter(dict[str, ModelSection])


def presets_json_schema() -> dict[str, Any]:
    """JSON schema of the presets file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Presets of Pyramid Sparse Attention",
        **SECTIONS.json_schema(by_alias=True),
    }
