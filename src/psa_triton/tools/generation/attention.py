"""Which attention a video is made with: a preset, or dense."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from psa_triton.impl import Impl
from psa_triton.integrations.diffusers import OnLevels, PSAHandle, apply_psa, check_video_scale
from psa_triton.models import GENERAL_SECTION
from psa_triton.presets import DENSE as DENSE_PRESET
from psa_triton.presets import NamedAttention, resolve
from psa_triton.tools.generation.source import ModelSource


@dataclass(frozen=True)
class DenseParts:
    """What runs dense though attention is sparse, besides the warm-up of the configuration."""

    max_error: float | None = None
    """What passes this measured error; instead of the warm-up."""
    min_tokens: int | None = 0
    """Shorter sequences; None for those that PSA is no faster on, by type of device."""
    dense_last_steps: int = 0
    """Denoising steps at the end."""
    dense_layers: tuple[int, ...] = ()
    """Blocks of the transformer, by index, in every step."""


@dataclass(frozen=True, kw_only=True)
class Attention(NamedAttention):
    """How the self-attention of the transformer is computed: as a preset says, and by what."""

    impl: Impl = "auto"
    """Implementation of the sparse operator."""
    dense_parts: DenseParts = DenseParts()
    """What runs dense all the same."""

    @property
    def has_dense_steps(self) -> bool:
        """Whether some steps of a run are dense, if it has enough of them."""
        return self.config is None or self.config.warmup_steps > 0 or self.dense_parts.dense_last_steps > 0

    def without_dense_steps(self) -> Attention:
        """The same from the first step to the last: for runs of one step that shall do what most steps do."""
        if self.config is None:
            return self
        parts = replace(self.dense_parts, dense_last_steps=0)
        return replace(self, config=self.config.replace(warmup_steps=0), dense_parts=parts)

    def attach(
        self, pipe: DiffusionPipeline, *, time_layers: bool = False, on_levels: OnLevels | None = None
    ) -> PSAHandle:
        """Attach it to a pipeline as `apply_psa` does; dense attention is measured and nothing more.

        Raises:
            ValueError: `video_scale` is not the pipeline's, or `dense_parts` are out of range.
        """
        if self.video_scale is not None:
            check_video_scale(pipe, self.name.partition("/")[0], self.video_scale)
        preset = DENSE_PRESET.name if self.config is None else self.config
        parts = asdict(self.dense_parts)
        return apply_psa(pipe, preset, impl=self.impl, **parts, time_layers=time_layers, on_levels=on_levels)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a sidecar, with all of the configuration that has a part in the result."""
        config = None if self.config is None else self.config.model_dump(mode="json", exclude={"verbose"})
        parts = {**asdict(self.dense_parts), "dense_layers": list(self.dense_parts.dense_layers)}
        return {"preset": self.name, "impl": self.impl, "config": config, **parts}


DENSE = Attention(name=DENSE_PRESET.name, config=None)


def choose_attention(source: ModelSource, preset: str | None = None, **how: Any) -> Attention:
    """The attention that a preset of a model stands for; errors and other arguments as in `named_attention`.

    Args:
        source: the model; None for `preset` is the one that it is run with.
        preset: a preset of the model's section (`general` for a model that is not known), "SECTION/PRESET", or `dense`.
    """
    spec = source.spec
    section, usual = (GENERAL_SECTION, None) if spec is None else (spec.preset_section, spec.preset)
    attention = named_attention(usual if preset is None else preset, section, **how)
    # What the section of all others says of sizes is of no model.
    return attention if spec is not None else replace(attention, video_scale=None)


def named_attention(
    preset: str | None, section: str | None = None, *, file: Path | None = None, **how: Any
) -> Attention:
    """The attention that a name stands for.

    Args:
        preset: a preset of that section; "SECTION/PRESET" for another's; `dense` for none; None for the default.
        section: of the presets file.
        file: a presets file of the user's own; None for the one that comes with the library.
        how: `impl` and `dense_parts` of the attention.

    Raises:
        ValueError: the file has mistakes, the preset does not exist, or no section is named.
    """
    if preset == DENSE.name:
        return DENSE
    return Attention(**vars(resolve(preset, section, file)), **how)
