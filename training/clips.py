"""Procedural clips for the built-in model: one or two coloured shapes moving in one direction over a background."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import torch

HUES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "cyan": 1 / 2, "blue": 2 / 3, "magenta": 5 / 6}
SHAPES = ("square", "ring", "cross")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
COLOURS = tuple(HUES)
RADIUS_OF_SIZE = {"small": 0.55, "large": 1.35}  # times the radius of an object of no size in words
RADIUS_OF_TWO = 0.62
VERBS = ("moving", "moving", "moving", "going")


@dataclass(frozen=True)
class Subject:
    """What a clip shows."""

    colour: str
    shape: str
    direction: str
    size: str = ""
    """A key of `RADIUS_OF_SIZE`, or nothing."""
    companion: tuple[str, str] | None = None
    """Colour and shape of a second object, which moves alongside."""
    stripes: bool = False
    """Whether the background is drifting stripes rather than a still gradient."""

    def describe(self, verb: str = "moving", article: str = "a ") -> str:
        first = f"{article}{self.size + ' ' if self.size else ''}{self.colour} {self.shape}"
        second = f" and {article}{self.companion[0]} {self.companion[1]}" if self.companion else ""
        return f"{first}{second} {verb} {self.direction}{' over stripes' if self.stripes else ''}"

    @property
    def prompt(self) -> str:
        return self.describe()


SUBJECTS = tuple(Subject(*c) for c in itertools.product(COLOURS, SHAPES, DIRECTIONS))


def is_held_out(subject: Subject) -> bool:
    """12 of the 72 combinations are never trained on; every colour, shape, direction and most pairs are."""
    i = COLOURS.index(subject.colour), SHAPES.index(subject.shape), list(DIRECTIONS).index(subject.direction)
    return (i[0] + 2 * i[1] + 3 * i[2]) % 6 == 0


HELD_OUT = tuple(s for s in SUBJECTS if is_held_out(s))
TRAINED = tuple(s for s in SUBJECTS if not is_held_out(s))


def draw_subject(rng: random.Random, harder: float) -> Subject:
    """A subject to train on; the share `harder` of them has a size, a companion, or stripes behind it."""
    subject = rng.choice(TRAINED)
    if rng.random() >= harder:
        return subject
    kind = rng.randrange(3)
    if kind == 0:
        return replace(subject, size=rng.choice(tuple(RADIUS_OF_SIZE)))
    if kind == 1:
        return replace(subject, companion=(rng.choice(COLOURS), rng.choice(SHAPES)))
    return replace(subject, stripes=True)


def draw_caption(subject: Subject, rng: random.Random) -> str:
    """Words for a subject; one in ten has none, for guidance."""
    if rng.random() < 0.1:
        return ""
    return subject.describe(rng.choice(VERBS), rng.choice(("a ", "a ", "a ", "")))


def hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """RGB `[..., 3]` in [0, 1] from hue, saturation and value `[...]` in [0, 1]."""
    k = (hue[..., None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


def coverage(shape: torch.Tensor, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor, soft: float) -> torch.Tensor:
    """How much of a pixel the shape covers, in [0, 1].

    Args:
        shape: index in `SHAPES`, broadcastable to `x`.
        x, y: offset of the pixel from the shape's centre, in frame widths.
        radius: half the extent of the shape, in frame widths.
        soft: a pixel's size, in frame widths: the width of the antialiased edge.
    """
    ax, ay = x.abs(), y.abs()
    square = torch.maximum(ax, ay) - 0.88 * radius
    distance = (x * x + y * y).sqrt()
    ring = torch.maximum(distance - radius, 0.52 * radius - distance)
    bar = 0.34 * radius
    cross = torch.minimum(torch.maximum(ax - radius, ay - bar), torch.maximum(ax - bar, ay - radius))
    signed = torch.where(shape == 0, square, torch.where(shape == 1, ring, cross))
    return (0.5 - signed / soft).clamp(0, 1)


def make_clips(
    subjects: list[Subject], frames: int, height: int, width: int, generator: torch.Generator
) -> torch.Tensor:
    """Clips `[B, 3, F, H, W]` in [-1, 1], one a subject; position, size, speed, shade and background are random."""
    n = len(subjects)

    def uniform(low: float, high: float, *size: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *size, generator=generator)

    def vivid(names: list[str]) -> torch.Tensor:
        hue = torch.tensor([HUES[name] for name in names]) + uniform(-0.025, 0.025)
        return hsv_to_rgb(hue % 1, uniform(0.85, 1.0), uniform(0.8, 1.0))

    def indices(shapes: list[str]) -> torch.Tensor:
        return torch.tensor([SHAPES.index(shape) for shape in shapes])

    colour = vivid([s.colour for s in subjects])
    heading = torch.tensor([DIRECTIONS[s.direction] for s in subjects])
    two = torch.tensor([s.companion is not None for s in subjects])
    scale = torch.tensor([RADIUS_OF_TWO if s.companion else RADIUS_OF_SIZE.get(s.size, 1.0) for s in subjects])
    radius, travel = scale * uniform(0.17, 0.24), uniform(0.35, 0.5)

    margin = radius + 0.02
    # Two objects have half the frame each, the first named the upper or the left one.
    across = margin + (torch.where(two, 0.5, 1.0) - 2 * margin) * uniform(0, 1)
    free = (1 - 2 * margin - travel).clamp(min=0)
    along = margin + free * uniform(0, 1)  # the lower end of the path
    start = torch.where(heading.sum(1) > 0, along, along + travel)
    horizontal = heading[:, 0] != 0
    ends = hsv_to_rgb(uniform(0, 1, 2), uniform(0, 0.25, 2), uniform(0.25, 0.75, 2))
    angle = uniform(0, 2 * torch.pi)

    t = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    px, py = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    view = (-1, 1, 1, 1)

    def cover(shape: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        x0, y0 = torch.where(horizontal, start, across), torch.where(horizontal, across, start)
        cx = x0[:, None] + heading[:, :1] * travel[:, None] * t
        cy = y0[:, None] + heading[:, 1:] * travel[:, None] * t
        dx = px[None, None, None, :] - cx[..., None, None]
        dy = py[None, None, :, None] - cy[..., None, None]
        dx, dy = torch.broadcast_tensors(dx, dy)
        return coverage(shape.view(view), dx, dy, radius.view(view), 1.5 / height)

    def position(angle: torch.Tensor) -> torch.Tensor:
        """Distance from the frame's centre in the direction `angle`, `[B, H, W]`."""
        x, y = px[None, None, :] - 0.5, py[None, :, None] - 0.5
        return x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]

    ramp = (position(angle) / 1.42 + 0.5).clamp(0, 1)[:, None]
    background = ends[:, 0, :, None, None] * (1 - ramp) + ends[:, 1, :, None, None] * ramp
    clip = background[:, :, None].expand(-1, -1, frames, -1, -1)
    striped = torch.tensor([s.stripes for s in subjects])
    if striped.any():
        wavelength, drift = uniform(0.16, 0.26), uniform(0.3, 0.7)
        phase = (
            position(uniform(0, 2 * torch.pi))[:, None] + drift.view(view) * t.view(1, -1, 1, 1)
        ) / wavelength.view(view)
        clip = clip + (0.16 * striped.view(view) * (2 * torch.pi * phase).sin())[:, None]
    clip = torch.lerp(
        clip, colour[:, :, None, None, None], cover(indices([s.shape for s in subjects]), across)[:, None]
    )
    if two.any():
        others = [s.companion or (s.colour, s.shape) for s in subjects]
        alpha = cover(indices([shape for _, shape in others]), across + 0.5) * two.view(view)
        clip = torch.lerp(clip, vivid([name for name, _ in others])[:, :, None, None, None], alpha[:, None])
    return clip * 2 - 1
