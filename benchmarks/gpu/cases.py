"""What is compared: attention layers of models, and the attentions that run on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from shares import BLOCK_SPARSE, DEFAULT, Ratios, scaled
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from psa_triton.blocks import Blocks
from psa_triton.exempt import find_sides
from psa_triton.importance import block_importance
from psa_triton.kernels import Reading, attend
from psa_triton.levels import exempt_levels, read_density, select_levels
from psa_triton.tools.shapes import AttentionShape

BLOCK_M, BLOCK_N = 128, 64
BLOCKS: Final = dict(block_m=BLOCK_M, block_n=BLOCK_N)
DTYPE: Final = torch.bfloat16
DENSE: Final = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash (FA2)": SDPBackend.FLASH_ATTENTION}
ESTIMATORS: Final = ("pooled", "sampled", "antidiagonal")
MASKS: Final = {
    "pyramid .15": (DEFAULT, 1.0),
    "pyramid .10": (DEFAULT, 2 / 3),
    "pyramid .25": (DEFAULT, 5 / 3),
    "levels 1/0 .15": (BLOCK_SPARSE, 0.15),
    "levels 1/0 1.0": (BLOCK_SPARSE, 1.0),
}
"""Shares of levels and a factor: fixed, so that nothing is searched for, and roughly what the name says."""
_EVERY_LEVEL: Final = {1: 0.2, 2: 0.2, 4: 0.2, 8: 0.2}


def _shape(name: str, section: str, heads: int, dim: int, grid: tuple[int, int, int], **marks: Any) -> AttentionShape:
    """A row of `known_shapes`, which need a presets file and so packages that a bare GPU machine may lack."""
    named = dict(name=name, video="", section=section, heads=heads, key_heads=heads, dim=dim, grid=grid)
    return AttentionShape(**named | marks)


SHAPES: Final = (
    _shape("Wan 720p, 12 heads", "Wan2.1_1.3b", 12, 128, (21, 45, 80)),
    _shape("Wan 720p, 40 heads", "Wan2.1_14b", 40, 128, (21, 45, 80)),
    _shape("CogVideoX", "CogVideo_5b", 48, 64, (13, 30, 45), prefix_tokens=226),
    _shape("Qwen2.5-VL prefill", "Qwen2.5-VL", 28, 128, (1, 1, 32_768), key_heads=4, is_causal=True),
    _shape("Wan 480p", "Wan2.2_A14B", 12, 128, (21, 30, 52)),
)


def small(shape: AttentionShape) -> AttentionShape:
    """What takes a moment in Triton's interpreter, of the same kind."""
    group = shape.heads // shape.key_heads
    return replace(shape, heads=group, key_heads=1, dim=32, grid=(2, 10, 15), prefix_tokens=min(shape.prefix_tokens, 9))


@dataclass(frozen=True)
class Inputs:
    """Queries, keys and values of a shape, `[1, H, N, D]`, laid out as models hand them over: `[1, N, H, D]`."""

    shape: AttentionShape
    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def draw(cls, shape: AttentionShape, device: torch.device) -> Inputs:
        """Random ones, the same every time."""
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(shape.tokens)

        def normal(heads: int) -> Tensor:
            size = (1, shape.tokens, heads, shape.dim)
            return torch.randn(size, generator=generator, device=device, dtype=DTYPE).transpose(1, 2)

        return cls(shape, normal(shape.heads), normal(shape.key_heads), normal(shape.key_heads))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def blocks(self) -> Blocks:
        return Blocks.of(self.q, self.k, BLOCK_M, BLOCK_N, self.shape.is_causal)


def estimate(x: Inputs, method: str) -> Tensor:
    """Importance `[1, H, nq, nk]`."""
    return block_importance(x.q, x.k, **BLOCKS, method=method, is_causal=x.shape.is_causal, impl="triton")


def choose(x: Inputs, importance: Tensor, ratios: Ratios) -> Tensor:
    """Levels with those shares of a row's blocks."""
    levels = select_levels(importance, ratios, mode="topk", impl="triton")
    return exempt_levels(levels, x.blocks) if x.shape.is_causal else levels


def sparse(x: Inputs, levels: Tensor) -> Tensor:
    """The kernels, from pooling on."""
    coarsest = max(DEFAULT)
    return attend(*x.tensors(), levels, x.blocks, Reading(x.shape.dim**-0.5, "none", coarsest, "auto", "triton"))[0]


def whole(x: Inputs, method: str, ratios: Ratios) -> Tensor:
    """Importance, selection, and the kernels."""
    return sparse(x, choose(x, estimate(x, method), ratios))


def ratios_of(mask: str) -> Ratios:
    return scaled(*MASKS[mask])


def levels_of(x: Inputs, ratios: Ratios | None = None) -> Tensor:
    """Levels to compare kernels on; by default as many blocks at each level."""
    return choose(x, estimate(x, "pooled"), scaled(_EVERY_LEVEL, 1.0) if ratios is None else ratios)


def dense(x: Inputs, backend: str) -> Tensor:
    """Torch's attention by one backend.

    Raises:
        RuntimeError: the backend does not take such inputs.
    """
    grouped = x.shape.heads != x.shape.key_heads
    with sdpa_kernel(DENSE[backend]):
        return F.scaled_dot_product_attention(*x.tensors(), is_causal=x.shape.is_causal, enable_gqa=grouped)


def density_of(x: Inputs, levels: Tensor) -> float:
    """Groups read over keys visible: the share of dense attention's work that is left."""
    return float(read_density(levels, x.blocks).mean())


def presets_of(shape: AttentionShape) -> list[str]:
    """The sparse presets that are shipped for the model, the default first."""
    from psa_triton.presets import load_presets_file

    section = load_presets_file().sections[shape.section]
    named = sorted(section.attention_configs, key=lambda name: name != section.default_attention)
    return [name for name in named if section.attention_configs[name].type == "psa"]


def preset_steps(x: Inputs, preset: str) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """A shipped preset as an attached model runs it, its density read; and its steps, each on its own."""
    from psa_triton.attention import sparse_attention
    from psa_triton.importance import estimate_importance
    from psa_triton.levels import choose_levels, coarsest_level
    from psa_triton.ordering import token_orders
    from psa_triton.presets import load_preset

    shape, config = x.shape, load_preset(x.shape.section, preset)
    assert config is not None  # a dense preset is none of `presets_of`
    prefix, scale, causal = shape.prefix_tokens, shape.dim**-0.5, dict(is_causal=shape.is_causal)
    grid = None if shape.is_causal else shape.grid
    _, *sides = find_sides(x.q.shape[2], x.k.shape[2], grid, prefix)
    orders = token_orders(x.q, x.k, config, grid, *sides, **causal)
    q, k, v = x.tensors()
    if orders is not None:
        q, k, v = orders[0].apply(q), orders[1].apply(k), orders[1].apply(v)
    exempt = {"exempt_queries": sides[0].front, "exempt_keys": sides[1].front}
    blocks = Blocks.of(q, k, config.block_m, config.block_n, shape.is_causal, **exempt)
    settings = dict(scale=scale, impl="triton")
    estimate_again = partial(estimate_importance, q, k, blocks, config.importance, **settings)
    choose_again = partial(choose_levels, estimate_again(), q, k, v, blocks, config, **settings)
    levels = choose_again()
    reading = Reading(scale, config.pool_correction, coarsest_level(config), config.qk_dtype, "triton")

    def as_attached() -> Tensor:
        out, levels = sparse_attention(*x.tensors(), config, grid=grid, prefix_tokens=prefix, impl="triton", **causal)
        read_density(levels, blocks)
        return out

    steps: dict[str, Callable[[], Any]] = {
        "importance": estimate_again,
        "levels": choose_again,
        "kernels": partial(attend, q, k, v, levels, blocks, reading),
        "density": partial(read_density, levels, blocks),
    }
    if orders is not None:
        steps["order"] = lambda: [orders[0].apply(t) for t in x.tensors()]
        steps["restore"] = partial(orders[0].restore, x.q)
    return as_attached, steps
