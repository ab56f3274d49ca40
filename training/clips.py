"""Procedural clips for the built-in model: one coloured shape moving in one direction over a soft background."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

HUES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "cyan": 1 / 2, "blue": 2 / 3, "magenta": 5 / 6}
SHAPES = ("square", "ring", "cross")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
COLOURS = tuple(HUES)
TEMPLATES = ("a {} {} moving {}", "a {} {} moving {}", "{} {} moving {}", "a {} {} going {}")


@dataclass(frozen=True)
class Subject:
    """What a clip shows."""

    colour: str
    shape: str
    direction: str

    @property
    def prompt(self) -> str:
        return TEMPLATES[0].format(self.colour, self.shape, self.direction)


SUBJECTS = tuple(Subject(*c) for c in itertools.product(COLOURS, SHAPES, DIRECTIONS))


def is_held_out(subject: Subject) -> bool:
    """12 of the 72 combinations are never trained on; every colour, shape, direction and most pairs are."""
    i = COLOURS.index(subject.colour), SHAPES.index(subject.shape), list(DIRECTIONS).index(subject.direction)
    return (i[0] + 2 * i[1] + 3 * i[2]) % 6 == 0


HELD_OUT = tuple(s for s in SUBJECTS if is_held_out(s))
TRAINED = tuple(s for s in SUBJECTS if not is_held_out(s))


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

    hue = torch.tensor([HUES[s.colour] for s in subjects]) + uniform(-0.025, 0.025)
    colour = hsv_to_rgb(hue % 1, uniform(0.85, 1.0), uniform(0.8, 1.0))
    shape = torch.tensor([SHAPES.index(s.shape) for s in subjects])
    heading = torch.tensor([DIRECTIONS[s.direction] for s in subjects])
    radius, travel = uniform(0.17, 0.24), uniform(0.35, 0.5)

    margin = radius + 0.02
    across = margin + (1 - 2 * margin) * uniform(0, 1)
    free = (1 - 2 * margin - travel).clamp(min=0)
    along = margin + free * uniform(0, 1)  # the lower end of the path
    start = torch.where(heading.sum(1) > 0, along, along + travel)
    horizontal = heading[:, 0] != 0
    x0, y0 = torch.where(horizontal, start, across), torch.where(horizontal, across, start)

    t = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    cx = x0[:, None] + heading[:, :1] * travel[:, None] * t
    cy = y0[:, None] + heading[:, 1:] * travel[:, None] * t
    px, py = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    dx = px[None, None, None, :] - cx[..., None, None]
    dy = py[None, None, :, None] - cy[..., None, None]
    dx, dy = torch.broadcast_tensors(dx, dy)
    view = (-1, 1, 1, 1)
    alpha = coverage(shape.view(view), dx, dy, radius.view(view), 1.5 / height)

    ends = hsv_to_rgb(uniform(0, 1, 2), uniform(0, 0.25, 2), uniform(0.25, 0.75, 2))
    angle = uniform(0, 2 * torch.pi)
    ramp = (px[None, None, :] - 0.5) * angle.cos()[:, None, None] + (py[None, :, None] - 0.5) * angle.sin()[
        :, None, None
    ]
    ramp = (ramp / 1.42 + 0.5).clamp(0, 1)[:, None]
    background = ends[:, 0, :, None, None] * (1 - ramp) + ends[:, 1, :, None, None] * ramp
    clip = torch.lerp(background[:, :, None], colour[:, :, None, None, None], alpha[:, None])
    return clip * 2 - 1
