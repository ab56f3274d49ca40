"""Self-attention of known models at the sizes that people run: what `psa bench --shape` names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from psa_triton.models import MODELS, QWEN2_5_VL, ModelSpec, model_key
from psa_triton.names import unknown_name

if TYPE_CHECKING:
    from psa_triton.presets import ModelSection


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """One self-attention layer; as many queries as keys."""

    name: str
    """Name on the command line."""
    video: str
    """What the model makes or reads at this size, in words."""
    section: str
    """Section of `attention_config.yaml`, for the preset."""
    heads: int
    """Query heads."""
    key_heads: int
    """Key and value heads."""
    dim: int
    """Channels of a head."""
    grid: tuple[int, int, int]
    """Frames, height and width of the visual tokens."""
    prefix_tokens: int = 0
    """Text tokens in front of them."""
    is_causal: bool = False
    """Whether a token sees only those before it."""

    @property
    def tokens(self) -> int:
        """N, text included."""
        t, h, w = self.grid
        return t * h * w + self.prefix_tokens

    def with_heads(self, key_heads: int) -> AttentionShape:
        """The first `key_heads` key heads with the query heads that read them."""
        return replace(self, heads=self.heads // self.key_heads * key_heads, key_heads=key_heads)

    def shrunk(self, tokens: int) -> AttentionShape:
        """The same video, smaller in all three dimensions alike, of about `tokens` tokens."""
        factor = (max(tokens - self.prefix_tokens, 1) / (self.tokens - self.prefix_tokens)) ** (1 / 3)
        t, h, w = (max(1, round(size * factor)) for size in self.grid)
        return replace(self, grid=(t, h, w))


SHAPES: tuple[str, ...] = (*dict.fromkeys(name for spec in MODELS.values() for name in spec.sizes), *QWEN2_5_VL.sizes)
"""Names of the known shapes."""


def find_shape(name: str) -> AttentionShape:
    """The shape of that name, or the largest of a model, which goes by its key or preset section.

    Raises:
        ValueError: nothing has that name; the nearest name and all names are told.
    """
    shapes = {shape.name: shape for shape in known_shapes()}
    if name in shapes:
        return shapes[name]
    key = model_key(name)
    sizes = {spec.key: spec.sizes for spec in MODELS.values()} | {QWEN2_5_VL.key: QWEN2_5_VL.sizes}
    if of_model := [shapes[size] for size in sizes.get(key, ())]:
        return max(of_model, key=lambda shape: shape.tokens)
    if key in MODELS and (shape := default_shape(MODELS[key])) is not None:
        return shape
    models = {spec.key for spec in MODELS.values() if default_shape(spec) is not None}
    raise ValueError(unknown_name("shape", name, {*SHAPES, *models, QWEN2_5_VL.key}))


def default_shape(spec: ModelSpec) -> AttentionShape | None:
    """A model's attention at its default size, by the model's key; None where no number of frames makes a token."""
    # Here and not above: `--help` names the shapes, and does not wait for yaml and pydantic.
    from psa_triton.presets import load_presets_file

    section = load_presets_file().sections[spec.preset_section]
    if spec.num_frames is not None and section.video_scale.depth_divisor == 1:
        return None
    frames = spec.section_frames or spec.num_frames or 1
    return _shape(spec.key, (spec.width, spec.height, frames), spec, section)


def known_shapes() -> Iterator[AttentionShape]:
    """What the models' rows, and their sections of the presets file, say of their attention at the known sizes."""
    from psa_triton.presets import load_presets_file

    sections = load_presets_file().sections
    for spec in MODELS.values():
        for name, size in spec.sizes.items():
            yield _shape(name, size, spec, sections[spec.preset_section])
    for name, grid in QWEN2_5_VL.sizes.items():
        yield AttentionShape(
            name=name,
            video=f"a video of {prod(grid):,} tokens, {QWEN2_5_VL.parameters}",
            section=QWEN2_5_VL.preset_section,
            heads=QWEN2_5_VL.heads,
            key_heads=QWEN2_5_VL.key_heads,
            dim=QWEN2_5_VL.dim,
            grid=grid,
            is_causal=True,
        )


def _shape(name: str, size: tuple[int, int, int], spec: ModelSpec, section: ModelSection) -> AttentionShape:
    width, height, frames = size
    return AttentionShape(
        name=name,
        video=f"{width}x{height}"
        + (f", {frames} frames" if spec.num_frames else "")
        + (f", {spec.parameters}" if spec.parameters else ""),
        section=spec.preset_section,
        heads=spec.heads,
        key_heads=spec.heads,
        dim=spec.dim,
        grid=section.video_scale.grid(width, height, frames),
        prefix_tokens=section.text_length,
    )
