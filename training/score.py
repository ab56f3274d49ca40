"""What does a clip show? Colour, shape and direction read from its pixels, and how often a model gets them right.

`python training/score.py --pipeline DIR` scores all prompts, dense and with presets, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass

import torch
from clips import COLOURS, DIRECTIONS, HELD_OUT, HUES, SHAPES, SUBJECTS, Subject, coverage

import psa_triton.tools.builtin  # noqa: F401 - lets diffusers find the codec

_LEAST_OBJECT = 0.004  # of the frame's pixels; less is no object


@dataclass(frozen=True)
class Reading:
    """What the pixels show; None where there is nothing to read."""

    colour: str | None
    shape: str | None
    direction: str | None


def saturation_mask(video: torch.Tensor) -> torch.Tensor:
    """How much each pixel belongs to the object, [0, 1]: objects are vivid, backgrounds are not."""
    high, low = video.amax(-1), video.amin(-1)
    saturation = (high - low) / high.clamp(min=1e-3) * (high > 0.25)
    return ((saturation - 0.4) / 0.3).clamp(0, 1)


def read_clip(video: torch.Tensor) -> Reading:
    """Read a clip `[F, H, W, 3]` in [0, 1]."""
    mask = saturation_mask(video)
    visible = mask.mean((1, 2)) > _LEAST_OBJECT
    if int(visible.sum()) < 2:
        return Reading(None, None, None)
    return Reading(_colour(video, mask), _shape(mask[visible]), _direction(mask, visible))


def _colour(video: torch.Tensor, mask: torch.Tensor) -> str:
    mean = (video * mask[..., None]).sum((0, 1, 2)) / mask.sum()
    red, green, blue = mean.tolist()
    hue = math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi) % 1
    return min(COLOURS, key=lambda name: abs((hue - HUES[name] + 0.5) % 1 - 0.5))


def _centres(mask: torch.Tensor) -> torch.Tensor:
    """Centre of mass of each frame's object `[F, 2]`, (x, y) in frame widths."""
    _, height, width = mask.shape
    total = mask.sum((1, 2)).clamp(min=1e-6)
    x = (mask.sum(1) @ ((torch.arange(width) + 0.5) / width)) / total
    y = (mask.sum(2) @ ((torch.arange(height) + 0.5) / height)) / total
    return torch.stack([x, y], dim=1)


def _direction(mask: torch.Tensor, visible: torch.Tensor) -> str | None:
    """The axis direction nearest to the motion; None if the object hardly moves."""
    time_of = visible.nonzero().squeeze(1).float()
    centres = _centres(mask[visible])
    time_of = time_of - time_of.mean()
    motion = (time_of[:, None] * (centres - centres.mean(0))).sum(0) / (time_of**2).sum() * (len(mask) - 1)
    if motion.norm() < 0.1:
        return None
    return max(DIRECTIONS, key=lambda name: float(motion @ torch.tensor(DIRECTIONS[name])))


def _shape(mask: torch.Tensor) -> str:
    """The shape whose silhouette, at the best of many sizes, overlaps most with the object in the middle frames."""
    middle = mask[len(mask) // 4 : max(len(mask) // 4 + 1, 3 * len(mask) // 4)]
    _, height, width = middle.shape
    centre = _centres(middle)
    x = (torch.arange(width) + 0.5) / width - centre[:, :1]
    y = (torch.arange(height) + 0.5) / height - centre[:, 1:]
    dx, dy = torch.broadcast_tensors(x[:, None, :], y[:, :, None])
    best: dict[str, float] = {}
    for i, name in enumerate(SHAPES):
        overlaps = []
        for radius in torch.arange(0.12, 0.3, 0.01):
            silhouette = coverage(torch.tensor(i), dx, dy, radius, 1.5 / height)
            both, either = torch.minimum(silhouette, middle).sum(), torch.maximum(silhouette, middle).sum()
            overlaps.append(float(both / either.clamp(min=1e-6)))
        best[name] = max(overlaps)
    return max(best, key=lambda name: best[name])


@dataclass(frozen=True)
class Score:
    """Share of clips that show what the prompt asked for."""

    colour: float
    shape: float
    direction: float
    clips: int


def score(subjects: list[Subject], videos: list[torch.Tensor]) -> Score:
    """Score clips `[F, H, W, 3]` against the subjects they were made for."""
    readings = [read_clip(v) for v in videos]
    pairs = list(zip(subjects, readings, strict=True))
    return Score(
        colour=sum(s.colour == r.colour for s, r in pairs) / len(pairs),
        shape=sum(s.shape == r.shape for s, r in pairs) / len(pairs),
        direction=sum(s.direction == r.direction for s, r in pairs) / len(pairs),
        clips=len(pairs),
    )


def generate(pipe, subjects: list[Subject], seed: int, batch: int = 12, **settings) -> list[torch.Tensor]:
    """Clips for subjects, each from its own seeded noise: subject `i` uses `seed * 1000 + i`."""
    pipe.set_progress_bar_config(disable=True)
    videos = []
    for start in range(0, len(subjects), batch):
        chosen = subjects[start : start + batch]
        generators = [torch.Generator().manual_seed(seed * 1000 + start + i) for i in range(len(chosen))]
        out = pipe([s.prompt for s in chosen], generator=generators, output_type="pt", **settings).frames
        videos += [v.float().permute(0, 2, 3, 1) for v in out]
    return videos


def main() -> None:
    from diffusers import WanPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of the pipeline")
    parser.add_argument("--grid", default="8x12x12", help="tokens: t x h x w")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--every", type=int, default=1, help="score every n-th prompt only")
    parser.add_argument("--preset", nargs="*", default=["baseline"])
    args = parser.parse_args()
    t, h, w = map(int, args.grid.split("x"))
    pipe = WanPipeline.from_pretrained(args.pipeline)
    settings = dict(num_frames=4 * (t - 1) + 1, height=h * 8, width=w * 8)
    settings |= dict(num_inference_steps=args.steps, guidance_scale=args.guidance)
    for preset in args.preset:
        for seed in args.seeds:
            began = time.monotonic()
            subjects = list(SUBJECTS[:: args.every])
            if preset == "baseline":
                videos = generate(pipe, subjects, seed, **settings)
            else:
                from psa_triton import apply_psa

                with apply_psa(pipe, preset, min_tokens=0):
                    videos = generate(pipe, subjects, seed, **settings)
            held = [(s, v) for s, v in zip(subjects, videos, strict=True) if s in HELD_OUT]
            line = dict(preset=preset, seed=seed, all=vars(score(subjects, videos)))
            line["held_out"] = vars(score([s for s, _ in held], [v for _, v in held]))
            print(json.dumps(line | dict(seconds=round(time.monotonic() - began, 1))), flush=True)


if __name__ == "__main__":
    main()
