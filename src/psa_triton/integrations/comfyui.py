"""PSA in ComfyUI: its attention override, and a wrapper around its model that knows the grid. Imports nothing of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor

from psa_triton.config import DEFAULT_PROBE, PSAConfig, Reuse
from psa_triton.inputs import as_count, as_indexes
from psa_triton.integrations.attend import Grid
from psa_triton.integrations.hosts import HostAttention, logger
from psa_triton.integrations.reuse import StepReuse
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.wrappers import unwrap
from psa_triton.models import GENERAL_SECTION, MODELS, recognise
from psa_triton.presets import load_presets_file, resolve

OVERRIDE: Final = "optimized_attention_override"
"""Where ComfyUI looks for an attention, in a model's transformer options."""
KEY: Final = "psa_triton"
"""Of the wrapper and the callbacks."""
TOLERANCE: Final = 1e-4
"""Relative difference of noise levels that are one: they pass through float32."""

Prefix = Callable[[Any, Mapping[str, Any]], int]
"""(the model, arguments of its forward by name) -> tokens in front of the visual ones."""


def _tokens(*names: str) -> Prefix:
    """Those of the arguments of these names, in dimension 1."""
    return lambda model, given: sum(given[name].shape[1] for name in names if given.get(name) is not None)


def _reference_frame(model: Any, given: Mapping[str, Any]) -> int:
    reference = given.get("reference_latent")
    if reference is None or model.ref_conv is None:
        return 0
    return (reference.shape[-2] // model.patch_size[1]) * (reference.shape[-1] // model.patch_size[2])


@dataclass(frozen=True)
class ComfyFamily:
    """A model class of ComfyUI. What stands behind the visual tokens is no part of it: such calls run dense."""

    prefix: Prefix
    more_in_front: bool = False
    """Whether there may be more tokens in front than `prefix` says, and none behind."""


COMFY_FAMILIES: Final[Mapping[str, ComfyFamily]] = {
    "WanModel": ComfyFamily(_reference_frame),
    "HunyuanVideo": ComfyFamily(_tokens("context", "txt_byt5", "clip_fea")),
    "LTXBaseModel": ComfyFamily(_tokens()),
    "LTXVModel": ComfyFamily(_tokens()),
    "Flux": ComfyFamily(_tokens("context")),
    "MiniMaxH3Model": ComfyFamily(_tokens("context"), more_in_front=True),
}
"""By the name of the class, or of one that it derives from."""


@dataclass
class _Forward:
    """One call of the model, of one thread."""

    grid: Grid
    prefix_tokens: int
    family: ComfyFamily
    first_single: int
    """Index of the first single-stream block: they are counted on from the double-stream ones."""
    reason: str | None
    step: int | None
    progress: float
    reuse: StepReuse | None
    calls: Counter[int] = field(default_factory=Counter)
    """Calls over the visual tokens, by layer."""
    reached: bool = False
    """Whether ComfyUI called the override at all."""


class ComfyAttention:
    """What one node puts on a model: an attention override, a wrapper of the model, two callbacks.

    Clones of the patched model, and threads that run them on several devices, share it; each thread has its own forward
    and keeps for itself what is reused.

    Args:
        model: the `ModelPatcher` of a known family that it is for.
        rules: what runs dense, and how the rest attends.
        start_percent, end_percent: of the sampling, between which attention is sparse.
        verbose: log every forward.
    """

    def __init__(
        self, model: Any, rules: DenseRules, *, start_percent: float, end_percent: float, verbose: bool
    ) -> None:
        self._host = HostAttention(rules, verbose=verbose)
        self._rules = rules
        self._percents = start_percent, end_percent
        self._previous = model.model_options.get("transformer_options", {}).get(OVERRIDE)
        self._thread = threading.local()
        self._first = True
        self.before_run(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> ComfyAttention:
        # Older versions of ComfyUI copy all options when they clone a model.
        return self

    def before_run(self, patcher: Any) -> None:
        """A sampling begins. Its schedule may have been set after this node."""
        self._sampling = patcher.get_model_object("model_sampling")
        self._start, self._end = (float(self._sampling.percent_to_sigma(percent)) for percent in self._percents)

    def after_run(self, _: Any) -> None:
        """A sampling is over."""
        if (reuse := getattr(self._thread, "reuse", None)) is not None:
            reuse.drop()

    # The frame alone stays out of a compiled model; what it calls is compiled.
    @torch.compiler.disable(recursive=False)
    def wrap_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of one call of the model: notes the grid and the noise level for the attention calls inside."""
        outer = getattr(self._thread, "forward", None)
        self._thread.forward = forward = self._begin(executor, args, kwargs)
        try:
            out = executor(*args, **kwargs)
        except BaseException:
            if forward.reuse is not None:
                forward.reuse.drop()
            raise
        finally:
            self._thread.forward = outer
        if forward.reuse is not None:
            forward.reuse.end()
        self._end_forward(forward)
        return out

    @torch.compiler.disable
    def _begin(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Forward:
        model = executor.class_obj
        bound = signature(executor.original).bind(*args, **kwargs)
        bound.apply_defaults()
        given = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        options = given["transformer_options"]
        latent = next(iter(given.values()))
        family = _family(model)
        sigma, levels = float(options["sigmas"].max()), options.get("sample_sigmas")
        schedule: tuple[float, ...] | None = None if levels is None else tuple(levels.tolist())
        reason = "warm-up" if sigma > self._start * (1 + TOLERANCE) else None
        reason = "last steps" if sigma < self._end * (1 - TOLERANCE) else reason
        first_block = next(iter(getattr(model, "double_blocks", ())), None)
        if getattr(first_block, "flipped_img_txt", False):  # HunyuanVideo of older versions
            reason = "other tokens behind the video"
        step = None if schedule is None else sum(level > sigma * (1 + TOLERANCE) for level in schedule)
        reuse = None if reason is not None or schedule is None else self._reuse(model, schedule, step or 0, options)
        return _Forward(
            grid=_grid(model, latent[0] if isinstance(latent, list | tuple) else latent),
            prefix_tokens=family.prefix(model, given),
            family=family,
            first_single=len(getattr(model, "double_blocks", ())),
            reason=reason,
            step=step,
            progress=self._progress(sigma),
            reuse=reuse,
        )

    @torch.compiler.disable
    def _end_forward(self, forward: _Forward) -> None:
        self._host.tell()
        first, self._first = self._first, False
        if first and not forward.reached:  # later ones may be skipped, by nodes that cache
            logger.warning(
                "PSA: no attention call of this model reaches it: another node took its place; put PSA after the nodes "
                "that set an attention"
            )

    def _reuse(
        self, model: Any, schedule: tuple[float, ...], step: int, options: Mapping[str, Any]
    ) -> StepReuse | None:
        config, kept = self._rules.config, self._thread
        if config is None or config.reuse is None:
            return None
        if not hasattr(kept, "reuse"):
            kept.reuse, kept.run = StepReuse(config.reuse, config.probe, self._rules.reusing(_layers(model))), None
        # Equal schedules are one run until `after_run`: ComfyUI may hand out a new tensor in each call.
        kept.run = kept.run if kept.run == schedule else schedule
        window = getattr(options.get("context_window"), "index_list", ())
        told_apart = (*options.get("uuids", ()), *options.get("cond_or_uncond", ()), *window)
        kept.reuse.begin(kept.run, step, told_apart, steps=len(schedule) - 1)
        return kept.reuse

    def _progress(self, sigma: float) -> float:
        """The last row of the budget table that has begun at this noise level."""
        table = () if self._rules.config is None else self._rules.config.budget_table
        begun = [row.start for row in table if sigma <= float(self._sampling.percent_to_sigma(row.start))]
        return max(begun, default=0.0)

    @torch.compiler.disable
    def override(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Answers one attention call of ComfyUI, or has it answered as it would be without PSA.

        Args:
            func: ComfyUI's own attention.
            args, kwargs: its arguments.
        """
        out = self._attend(*args, **kwargs)
        if out is not None:
            return out
        return func(*args, **kwargs) if self._previous is None else self._previous(func, *args, **kwargs)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        *,
        transformer_options: Mapping[str, Any] | None = None,
        low_precision_attention: bool = True,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor | None:
        forward: _Forward | None = getattr(self._thread, "forward", None)
        if forward is None:  # a text encoder, or a control model before the model itself
            return None
        forward.reached = True
        if not skip_reshape:
            channels = q.shape[-1] // heads
            q, k, v = (x.unflatten(-1, (-1, channels)).transpose(1, 2) for x in (q, k, v))
        options = transformer_options or {}
        # Wan's own grid has the frames that are put behind the latent's.
        grid: Grid = tuple(options.get("grid_sizes", forward.grid))
        reason = "attention mask" if mask is not None else forward.reason
        if not low_precision_attention:
            reason = "no approximation asked for"
        in_front = q.shape[2] - grid[0] * grid[1] * grid[2]
        prefix = max(in_front, forward.prefix_tokens) if forward.family.more_in_front else forward.prefix_tokens
        layer, nth = 0, 0
        if in_front == prefix and q.shape[2] == k.shape[2]:
            layer = options.get("block_index", forward.calls.total())
            layer += forward.first_single if options.get("block_type") == "single" else 0
            nth = forward.calls[layer]
            forward.calls[layer] += 1
        out = self._host.attend(
            q,
            k,
            v,
            layer=layer,
            grid=grid,
            prefix_tokens=prefix,
            reason=reason,
            step=forward.step,
            progress=forward.progress,
            scale=scale,
            reuse=forward.reuse,
            nth=nth,
        )
        if out is None or skip_output_reshape:
            return out
        return out.transpose(1, 2).flatten(2)


def preset_names() -> list[str]:
    """Presets that a ComfyUI model may have: those of all video models."""
    sections = load_presets_file().sections
    known = dict.fromkeys([GENERAL_SECTION, *(spec.preset_section for spec in MODELS.values())])
    return list(dict.fromkeys(name for section in known for name in sections[section].attention_configs))


def patch_model(
    model: Any,
    preset: str | None = None,
    *,
    budget: float | None = None,
    max_error: float | None = None,
    start_percent: float = 0.2,
    end_percent: float = 1.0,
    dense_blocks: Collection[int] = (),
    min_tokens: int | None = None,
    refresh: int | None = None,
    verbose: bool = False,
) -> Any:
    """A clone of a ComfyUI model whose self-attention over visual tokens is PSA's.

    The model that is given stays as it is. An attention override that it has answers what runs dense.

    Args:
        model: a `ModelPatcher` of Wan, HunyuanVideo, LTX, Flux or MiniMax H3.
        preset: name in the section of the recognised model, or in section `general`; "SECTION/PRESET"; `dense`; None
            for the default preset, and for `psa_budget` where a budget is given.
        budget: density, instead of the preset's; for presets of `mask_mode: budget`.
        max_error: bound on the measured relative error of attention, instead of the preset's rhythm.
        start_percent, end_percent: of the sampling, between which attention is sparse; instead of the preset's warm-up.
        dense_blocks: indexes of the blocks that run dense; single-stream blocks are counted on from the others.
        min_tokens: shorter sequences run dense; None for eight key blocks.
        refresh: steps from one dense computation of a block to the next, whose difference the steps between add.
        verbose: log every forward with its measured error, not each shape once.

    Raises:
        TypeError: the model is of no known class.
        ValueError: an option does not fit the model or the preset, or PSA is on the model already.
        PresetError: there is no such preset.
    """
    diffusion = unwrap(model.get_model_object("diffusion_model"))
    _family(diffusion)
    if not 0 <= start_percent < end_percent <= 1:
        raise ValueError(
            f"start_percent: expected 0 <= start_percent < end_percent <= 1, got {start_percent} and {end_percent}"
        )
    config = _config(preset, _section(diffusion), budget)
    if config is not None:
        config = _controlled(config.replace(warmup_steps=0), max_error, refresh)
    rules = DenseRules(
        kind="diffusion",
        config=config,
        min_tokens=None if min_tokens is None else as_count("min_tokens", min_tokens),
        layers=as_indexes("dense_blocks", dense_blocks),
    )
    rules.check_layers(range(_layers(diffusion)))
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    if isinstance(getattr(options.get(OVERRIDE), "__self__", None), ComfyAttention):
        raise ValueError("model: PSA is on it already; leave one of the two nodes out")
    attention = ComfyAttention(patched, rules, start_percent=start_percent, end_percent=end_percent, verbose=verbose)
    options[OVERRIDE] = attention.override
    patched.add_wrapper_with_key("diffusion_model", KEY, attention.wrap_model)
    patched.add_callback_with_key("on_pre_run", KEY, attention.before_run)
    patched.add_callback_with_key("on_cleanup", KEY, attention.after_run)
    return patched


def _config(preset: str | None, section: str, budget: float | None) -> PSAConfig | None:
    named = resolve(preset or (None if budget is None else "psa_budget"), section)
    if budget is None or named.config is None:
        return named.config
    if named.config.mask_mode != "budget":
        raise ValueError(f"budget: expected none with preset {named.name}, which has no budget; take psa_budget")
    return named.config.replace(budget=budget, budget_table=())


def _controlled(config: PSAConfig, max_error: float | None, refresh: int | None) -> PSAConfig:
    """With error control, for cards that hold little besides the model: small, and on the host."""
    if max_error is None and refresh is None:
        return config
    if max_error is not None and refresh is not None:
        raise ValueError("refresh: expected none with max_error, which decides itself when blocks refresh")
    reuse = config.reuse or Reuse(refresh_every=1, keep="fp8", keep_on="host")
    if max_error is not None:
        return config.replace(reuse=reuse).bounded(max_error)
    groups = min(reuse.layer_groups, refresh or 1)
    no_bound = {"max_error": None, "middle_tolerance": 1.0}
    rhythm = {"refresh_every": refresh, "refresh_steps": (), "layer_groups": groups, **no_bound}
    return config.replace(reuse=Reuse(**{**reuse.model_dump(), **rhythm}), probe=config.probe or DEFAULT_PROBE)


def _section(model: Any) -> str:
    """The section of presets of a model: as diffusers describes it, for that is what the table of models goes by."""
    if type(model).__name__ != "WanModel":
        return GENERAL_SECTION
    described = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.dim // model.num_heads,
        "num_layers": len(model.blocks),
        "in_channels": model.patch_embedding.in_channels,
        "ffn_dim": model.ffn_dim,
    }
    spec = recognise(described, two_transformers=False)
    return GENERAL_SECTION if spec is None else spec.preset_section


def _family(model: Any) -> ComfyFamily:
    names = (base.__name__ for base in type(model).__mro__)
    found = next((COMFY_FAMILIES[name] for name in names if name in COMFY_FAMILIES), None)
    if found is None:
        raise TypeError(f"model: expected one of {', '.join(COMFY_FAMILIES)}, got {type(model).__name__}")
    return found


def _layers(model: Any) -> int:
    """Blocks that attend to visual tokens."""
    names = ("blocks", "transformer_blocks", "double_blocks", "single_blocks")
    return sum(len(getattr(model, name, ())) for name in names)


def _grid(model: Any, latent: Tensor) -> Grid:
    """Patches of a latent `[B, C, T, H, W]` or `[B, C, H, W]`, which is padded to whole ones."""
    patch = getattr(model, "patch_size", 1)
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    sizes = latent.shape[2:] if latent.ndim == 5 else (1, *latent.shape[2:])
    t, h, w = (-(-size // step) for size, step in zip(sizes, (1, *patch)[-3:], strict=True))
    return t, h, w
