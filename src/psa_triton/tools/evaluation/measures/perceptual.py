"""ST-LPIPS: shift-tolerant learned perceptual similarity (Ghildyal and Liu, ECCV 2022, arXiv 2207.13686).

A relative of LPIPS (Zhang et al. 2018) with blurred downsampling, so that a shift of a pixel costs little. Its values
are not LPIPS's and do not compare with those of papers. Its weights come inside the PyPI package `stlpips-pytorch`,
whose code needs torchvision and more; all that is used of it is that file, read as plain tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psa_triton.tools.evaluation.measures.score import NotMeasured, Score

_WEIGHTS = Path("weights/vST0.0/alex_shift_tolerant.pth")
_LEAST_SIDE: Final = 32
"""Pixels: much smaller frames have no pixel left after the last blur."""
_CHUNK: Final = 4
"""Frames at a time: the first feature maps have 64 channels of nearly the frame's size."""


def st_lpips(reference: Tensor, video: Tensor) -> Score:
    """Distance of AlexNet's features, 0 for equal frames; frames `[F, 3, H, W]` in [0, 1].

    Raises:
        NotMeasured: the weights are not on this machine, or the frames are too small.
    """
    if (side := min(reference.shape[-2:])) < _LEAST_SIDE:
        raise NotMeasured(f"frames of {side} pixels are too small, at least {_LEAST_SIDE} are needed")
    path = find_weights()
    if path is None:
        raise NotMeasured("needs the weights in stlpips-pytorch: pip install 'psa-triton[lpips]'")
    network = _load(path).to(reference.device)
    pairs = zip(reference.split(_CHUNK), video.split(_CHUNK), strict=True)
    return Score(tuple(value for a, b in pairs for value in network(a, b).tolist()))


def find_weights() -> Path | None:
    """The file of weights; None where the package is not installed."""
    spec = find_spec("stlpips_pytorch")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _WEIGHTS
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def _load(path: Path) -> ShiftTolerantLpips:
    network = ShiftTolerantLpips()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for blur in (name for name in list(saved) if name.endswith(".filt")):
        del saved[blur]  # the fixed kernel of `_Blur`
    network.load_state_dict(saved)
    return network.eval().requires_grad_(False)


class ShiftTolerantLpips(nn.Module):
    """The network; its parameters have the names that they have in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = nn.Module()  # frames in [-1, 1] by ImageNet's mean and deviation
        self.scaling_layer.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.scaling_layer.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.net = _AlexNet()
        for index, channels in enumerate((64, 192, 384, 256, 256)):
            # Second of two: the first, which has no weights, is a dropout of training.
            head = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{index}", nn.ModuleDict({"model": head}))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances `[F]` of frames `[F, 3, H, W]` in [0, 1]."""
        shift, scale = self.scaling_layer.buffers()
        features = zip(*(self.net((2 * x - 1 - shift) / scale) for x in (a, b)), strict=True)
        total = torch.zeros(len(a), device=a.device)
        for index, (x, y) in enumerate(features):
            apart = (_unit(x) - _unit(y)).square()
            total += self.get_submodule(f"lin{index}.model")(apart).mean((1, 2, 3))
        return total


class _AlexNet(nn.Module):
    """AlexNet's convolutions, their strides replaced by blurs; layers are numbered as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.slice1 = _numbered({0: nn.Conv2d(3, 64, 11, padding=2), 1: _Blur(), 2: nn.ReLU()})
        self.slice2 = _numbered({3: nn.MaxPool2d(3, 1), 4: _Blur(), 5: nn.Conv2d(64, 192, 5, padding=2), 6: nn.ReLU()})
        self.slice3 = _numbered(
            {7: nn.MaxPool2d(3, 1), 8: _Blur(), 9: nn.Conv2d(192, 384, 3, padding=1), 10: nn.ReLU()}
        )
        self.slice4 = _numbered({11: nn.Conv2d(384, 256, 3, padding=1), 12: nn.ReLU()})
        self.slice5 = _numbered({13: nn.Conv2d(256, 256, 3, padding=1), 14: nn.ReLU()})

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features after each of the five convolutions."""
        features = []
        for part in (self.slice1, self.slice2, self.slice3, self.slice4, self.slice5):
            x = part(x)
            features.append(x)
        return features


class _Blur(nn.Module):
    """Half the resolution after a binomial blur of 3 x 3, borders reflected by 2 pixels (Zhang 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        line = torch.tensor([0.25, 0.5, 0.25], device=x.device)
        kernel = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _numbered(layers: dict[int, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((str(index), layer) for index, layer in layers.items()))


def _unit(features: Tensor) -> Tensor:
    """Features `[F, C, h, w]` of length 1 along the channels."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
