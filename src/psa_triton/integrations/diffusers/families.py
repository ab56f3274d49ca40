"""What PSA must know of a transformer class to attach to it: one row a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, TypeAlias

from torch import Tensor, nn

from psa_triton.integrations.attend import Grid

Arguments: TypeAlias = Mapping[str, Any]
"""What a transformer's forward was called with, by name, defaults included."""
Grids: TypeAlias = Callable[[Any, Arguments], list[Grid]]
"""(the transformer's config, arguments of its forward) -> grids of its visual tokens, as they follow each other."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A transformer class of diffusers, as far as sparse attention is concerned."""

    attentions: tuple[str, ...]
    """Names of the attention modules over visual tokens, `*` for one part of a name; each must match a module."""
    optional: tuple[str, ...] = ()
    """More of them, which a checkpoint may lack."""
    grids: Grids
    """Where the visual tokens come from."""
    visual: str = "first"
    """Where they stand in an attended sequence: `first` (others follow), `last` (others precede), or the name of the
    argument that holds their positions, int64 `[V]`."""
    others: tuple[str, ...] = ()
    """Arguments whose tokens (dimension 1) are attended along with the visual ones: text."""
    timestep: str | None = "timestep"
    """The argument that is one of the scheduler's timesteps; None where a pipeline hands on something else of it."""
    exempt_keys: tuple[int, ...] = ()
    """Which of the grids, by index, every query reads in full: reference images, the first frame as a sink. Tokens that
    are not visual are always read so, and read everything in full."""
    exempt_queries: tuple[int, ...] = ()
    """Which of the grids read everything in full."""
    more_keys: bool = False
    """Queries are the visual tokens alone; keys are these after others."""
    copies: bool = False
    """Some layers attend to the visual tokens several times over."""
    spare_frames: int = 1
    """Frames of a video beyond whole tokens: 1 where the first frame has a token of its own."""
    packed: int = 1
    """Rows and columns of the latent that its pipeline puts into a patch before the transformer's own."""
    leave_out: tuple[str, ...] = ()
    """Arguments that choose a sparse attention of the family's own: None while PSA's runs."""
    processor: Callable[[Any], Any] | None = None
    """(the layer's processor) -> one that calls `scaled_dot_product_attention` with what PSA can use; None: itself."""

    def layers(self, transformer: nn.Module) -> list[Any]:
        """The attention modules of a transformer, pattern by pattern.

        Raises:
            ValueError: a pattern matches no module.
        """
        found: list[Any] = []
        for pattern in (*self.attentions, *self.optional):
            matching = [module for name, module in transformer.named_modules() if _matches(name, pattern)]
            if not matching and pattern in self.attentions:
                raise ValueError(
                    f"attentions: expected {pattern!r} to name attention modules with a processor, and in this "
                    f"{type(transformer).__name__} it names none; correct the row of its family"
                )
            found += [module for module in matching if hasattr(module, "processor")]
        return found

    def other_tokens(self, arguments: Arguments) -> int:
        """How many tokens of `others` come along."""
        return sum(arguments[name].shape[1] for name in self.others if arguments.get(name) is not None)


def _matches(name: str, pattern: str) -> bool:
    return name.count(".") == pattern.count(".") and fnmatchcase(name, pattern)


def register_family(transformer: type[nn.Module] | str, family: Family) -> None:
    """Let `apply_psa` attach to a transformer class, and to those derived from it. A row that is there is replaced.

    Args:
        transformer: the class or its name.
        family: its row. `CONTRIBUTING.md` makes one step by step.
    """
    FAMILIES[transformer if isinstance(transformer, str) else transformer.__name__] = family


def family_name(transformer: object) -> str | None:
    """The class, of a transformer's own and those it derives from, that has a row; None if none has."""
    return next((base.__name__ for base in type(transformer).__mro__ if base.__name__ in FAMILIES), None)


# ---------------------------------------------------------------- grids
def latent_grid(layout: str = "bcthw", argument: str = "hidden_states") -> Grids:
    """Patches of a latent tensor, whose dimensions `layout` names: b, c, t (frames), h, w; of an image without t."""

    def grids(config: Any, arguments: Arguments) -> list[Grid]:
        shape = arguments[argument].shape
        names = layout if len(shape) == len(layout) else layout.replace("t", "")
        size = dict(zip(names, shape, strict=True))
        t, h, w = patch_size(config)
        return [(size.get("t", 1) // t, size["h"] // h, size["w"] // w)]

    return grids


def patch_size(config: Any) -> Grid:
    """Latent frames, rows and columns of a token."""
    patch = config.get("patch_size") or 1
    if isinstance(patch, int):
        patch = (patch, patch)
    return tuple(patch) if len(patch) == 3 else (config.get("patch_size_t") or 1, *patch)


def _named_sizes(config: Any, arguments: Arguments) -> list[Grid]:
    patch, patch_t = config.patch_size, config.patch_size_t
    return [(arguments["num_frames"] // patch_t, arguments["height"] // patch, arguments["width"] // patch)]


def _after_history(**kernels: Grid) -> Grids:
    """Latents of the past in coarser patches, oldest first and rounded up, then the latent itself."""
    latent = latent_grid()

    def grids(config: Any, arguments: Arguments) -> list[Grid]:
        history = [(arguments.get(name), kernel) for name, kernel in kernels.items()]
        past = [_rounded_up(x, kernel) for x, kernel in history if x is not None]
        return past + latent(config, arguments)

    return grids


def _rounded_up(latent: Tensor, kernel: Grid) -> Grid:
    t, h, w = (-(-size // step) for size, step in zip(latent.shape[2:], kernel, strict=True))
    return t, h, w


def _image_ids(config: Any, arguments: Arguments) -> list[Grid]:
    """From (image, row, column) coordinates: an image ends where the first one changes."""
    ids = arguments["img_ids"]
    ids = (ids[0] if ids.ndim == 3 else ids).cpu()
    starts = [0, *((ids[1:, 0] != ids[:-1, 0]).nonzero().flatten() + 1).tolist(), len(ids)]
    return [_extent(ids[start:stop]) for start, stop in pairwise(starts)]


def _extent(ids: Tensor) -> Grid:
    height, width = (ids[:, 1:3].amax(0) - ids[:, 1:3].amin(0) + 1).int().tolist()
    return 1, height, width


def _image_shapes(config: Any, arguments: Arguments) -> list[Grid]:
    shapes = arguments["img_shapes"][0]
    return [tuple(shape) for shape in ([shapes] if isinstance(shapes[0], int) else shapes)]


def _vision_shapes(config: Any, arguments: Arguments) -> list[Grid]:
    return [tuple(shape) for shape in arguments["vision_token_shapes"]]


def _positions(config: Any, arguments: Arguments) -> list[Grid]:
    t, h, w = (len(axis.unique()) for axis in arguments["position_ids"][arguments["video_indices"]][:, :3].unbind(1))
    return [(t, h, w)]


def _z_image(config: Any, arguments: Arguments) -> list[Grid]:
    patch, patch_t = arguments["patch_size"], arguments["f_patch_size"]
    _, t, h, w = arguments["x"][0].shape
    return [(t // patch_t, h // patch, w // patch)]


def _one_frame(config: Any, arguments: Arguments) -> list[Grid]:
    *_, h, w = arguments["hidden_states"].shape
    return [(1, h // config.patch_size, w // config.patch_size)]


# ---------------------------------------------------------------- the table
def _hunyuan_video_15(processor: Any) -> Any:
    from psa_triton.integrations.diffusers.hunyuan_video_15 import PaddedProcessor

    return PaddedProcessor()


def _row(attentions: str, grids: Grids, optional: str | None = None, **more: Any) -> Family:
    return Family(attentions=(attentions,), optional=(optional,) if optional else (), grids=grids, **more)


_WAN = _row("blocks.*.attn1", latent_grid())
_PLAIN = _row("transformer_blocks.*.attn1", latent_grid())
_LTX = replace(_PLAIN, grids=_named_sizes)
_TEXT: dict[str, Any] = {"others": ("encoder_hidden_states",)}
_COGVIDEOX = _row("transformer_blocks.*.attn1", latent_grid("btchw"), visual="last", **_TEXT)
_HUNYUAN = _row("transformer_blocks.*.attn", latent_grid(), "single_transformer_blocks.*.attn", **_TEXT)
_FLUX = replace(_HUNYUAN, grids=_image_ids, visual="last", timestep=None, packed=2)
_HELIOS = _after_history(latents_history_long=(4, 8, 8), latents_history_mid=(2, 4, 4), latents_history_short=(1, 2, 2))
_FRAMEPACK = _after_history(latents_history_4x=(4, 8, 8), latents_history_2x=(2, 4, 4), latents_clean=(1, 2, 2))

FAMILIES: dict[str, Family] = {
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": replace(_WAN, optional=("vace_blocks.*.attn1",)),
    "CogVideoXTransformer3DModel": _COGVIDEOX,
    "WanAnimateTransformer3DModel": _WAN,
    "SkyReelsV2Transformer3DModel": _WAN,
    "ChronoEditTransformer3DModel": _WAN,
    "AnyFlowTransformer3DModel": replace(_WAN, grids=latent_grid("btchw")),
    "HeliosTransformer3DModel": replace(_WAN, grids=_HELIOS),
    "ConsisIDTransformer3DModel": _COGVIDEOX,
    "HunyuanVideoTransformer3DModel": _HUNYUAN,
    "HunyuanVideoFramepackTransformer3DModel": replace(_HUNYUAN, grids=_FRAMEPACK),
    "HunyuanVideo15Transformer3DModel": replace(_HUNYUAN, processor=_hunyuan_video_15),
    "HunyuanImageTransformer2DModel": _HUNYUAN,
    "MotifVideoTransformer3DModel": replace(_HUNYUAN, copies=True),
    "LTXVideoTransformer3DModel": _LTX,
    "LTX2VideoTransformer3DModel": _LTX,
    "MochiTransformer3DModel": replace(_PLAIN, **_TEXT),
    "AllegroTransformer3DModel": replace(_PLAIN, spare_frames=0),
    "CosmosTransformer3DModel": replace(_PLAIN, timestep=None),
    "Cosmos3OmniTransformer": _row("layers.*.self_attn", _vision_shapes, visual="last", timestep=None, more_keys=True),
    "EasyAnimateTransformer3DModel": replace(_PLAIN, optional=("transformer_blocks.*.attn2",), visual="last", **_TEXT),
    "LatteTransformer3DModel": replace(_PLAIN, grids=_one_frame),
    "Kandinsky5Transformer3DModel": _row(
        "visual_transformer_blocks.*.self_attention", latent_grid("bthwc"), leave_out=("sparse_params",)
    ),
    "Kandinsky6Transformer3DModel": _row(
        "visual_transformer_blocks.*.video_dec_block.self_attention", latent_grid("bthwc")
    ),
    "MiniMaxH3Transformer3DModel": _row("transformer_blocks.*.attn", _positions, visual="video_indices", timestep=None),
    "FluxTransformer2DModel": _FLUX,
    "Flux2Transformer2DModel": _FLUX,
    "QwenImageTransformer2DModel": _row(
        "transformer_blocks.*.attn", _image_shapes, visual="last", timestep=None, **_TEXT
    ),
    "SD3Transformer2DModel": _row("transformer_blocks.*.attn", latent_grid(), "transformer_blocks.*.attn2", **_TEXT),
    "ZImageTransformer2DModel": _row(
        "layers.*.attention", _z_image, "noise_refiner.*.attention", timestep=None, packed=2
    ),
    "Lumina2Transformer2DModel": _row(
        "layers.*.attn", latent_grid(), "noise_refiner.*.attn", visual="last", timestep=None, **_TEXT
    ),
}
"""The families by the name of their class."""
