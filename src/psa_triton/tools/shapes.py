"""Self-attention of known models at the sizes that people run: what `psa bench --shape` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from psa_triton.models import PRESET_SECTIONS, preset_section
from psa_triton.names import unknown_name


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


def _shape(name: str, video: str, section: str, heads: int, dim: int, grid: tuple[int, int, int]) -> AttentionShape:
    return AttentionShape(name=name, video=video, section=section, heads=heads, key_heads=heads, dim=dim, grid=grid)


_SHAPES = (
    _shape("tiny-wan", "96x96, 29 frames", "tiny-wan", 3, 64, (8, 12, 12)),
    _shape("tiny-wan-16k", "256x256, 61 frames", "tiny-wan", 3, 64, (16, 32, 32)),
    _shape("wan21-480p", "832x480, 81 frames, 1.3B", "Wan2.1_1.3b", 12, 128, (21, 30, 52)),
    _shape("wan21-720p", "1280x720, 81 frames, 1.3B", "Wan2.1_1.3b", 12, 128, (21, 45, 80)),
    _shape("wan21-14b-720p", "1280x720, 81 frames, 14B", "Wan2.1_14b", 40, 128, (21, 45, 80)),
    _shape("wan22-5b-720p", "1280x704, 121 frames", "Wan2.2_5B", 24, 128, (31, 22, 40)),
    _shape("wan22-a14b-720p", "1280x768, 69 frames", "Wan2.2_A14B", 40, 128, (18, 48, 80)),
    replace(_shape("cogvideo-480p", "720x480, 49 frames", "CogVideo_5b", 48, 64, (13, 30, 45)), prefix_tokens=226),
    replace(
        _shape("cogvideo15-768p", "1360x768, 81 frames", "CogVideo1.5_5b", 48, 64, (11, 48, 85)), prefix_tokens=226
    ),
    AttentionShape(
        name="qwen25vl-32k",
        video="a video of 32,768 tokens, 7B",
        section="Qwen2.5-VL",
        heads=28,
        key_heads=4,
        dim=128,
        grid=(32, 32, 32),
        is_causal=True,
    ),
)

SHAPES: Mapping[str, AttentionShape] = MappingProxyType({shape.name: shape for shape in _SHAPES})
"""The known shapes by name."""


def find_shape(name: str) -> AttentionShape:
    """The shape of that name, or the largest of a model, which goes by its key or preset section.

    Raises:
        ValueError: nothing has that name; the nearest name and all names are told.
    """
    if name in SHAPES:
        return SHAPES[name]
    of_model = [shape for shape in SHAPES.values() if shape.section == preset_section(name)]
    if not of_model:
        raise ValueError(unknown_name("shape", name, {*SHAPES, *PRESET_SECTIONS}))
    return max(of_model, key=lambda shape: shape.tokens)
