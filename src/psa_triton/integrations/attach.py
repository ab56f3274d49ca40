"""`apply_psa` for diffusers and transformers alike; only the library that the model is of gets imported."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from psa_triton.config import PSAConfig
from psa_triton.impl import Impl
from psa_triton.integrations.wrappers import library, unsupported, unwrap

if TYPE_CHECKING:
    from psa_triton.integrations.diffusers import OnLevels
    from psa_triton.integrations.handle import PSAHandle


def apply_psa(
    model: Any,
    config_or_preset: PSAConfig | str | None = None,
    *,
    scheduler: Any = None,
    impl: Impl = "auto",
    max_error: float | None = None,
    min_tokens: int | None = None,
    dense_last_steps: int = 0,
    dense_layers: Collection[int] = (),
    time_layers: bool = False,
    on_levels: OnLevels | None = None,
) -> PSAHandle[Any]:
    """Attach PSA to a model until the handle's `remove`, or `remove_psa`.

    `psa_triton.integrations.diffusers.apply_psa` and `psa_triton.integrations.transformers.apply_psa` say in full what
    is done to the model.

    Args:
        model: a diffusers pipeline or transformer of a known family, or a transformers model or pipeline,
            whose text layers then prefill with PSA; also wrapped by PEFT, `DistributedDataParallel` and the like.
        config_or_preset: a configuration; a preset's name in the section of the model; "SECTION/PRESET"; `dense`;
            None for the default preset of the model.
        scheduler: diffusion only: tells the denoising step outside of a pipeline's call; by default the pipeline's.
        impl: implementation of the operator, as in `psa_attention`.
        max_error: diffusion only: bound on the relative error of attention, as measured in each call.
        min_tokens: shorter sequences run dense.
        dense_last_steps: diffusion only: number of denoising steps at the end that run dense.
        dense_layers: indexes of the layers that run dense.
        time_layers: take the wall-clock time of each attention call (on a GPU this waits for it twice a call).
        on_levels: diffusion only: told what each sparse call read.

    Returns:
        A handle with `config`, `stats()`, `reset()` and `remove()`; also a context manager that detaches at its end.

    Raises:
        TypeError: if an argument is of a class that isn't supported.
        ValueError: if PSA is attached already, or an option does not fit the model.
    """
    common: dict[str, Any] = dict(impl=impl, min_tokens=min_tokens, dense_layers=dense_layers, time_layers=time_layers)
    diffusion: dict[str, Any] = dict(
        scheduler=scheduler, max_error=max_error, dense_last_steps=dense_last_steps, on_levels=on_levels
    )
    inner = unwrap(model)
    match library(inner):
        case "diffusers":
            from psa_triton.integrations import diffusers

            return diffusers.apply_psa(model, config_or_preset, **common, **diffusion)
        case "transformers":
            if given := [name for name, value in diffusion.items() if value]:
                raise ValueError(
                    f"{given[0]}: belongs to diffusion models, and this is a {type(inner).__name__}; leave it out"
                )
            from psa_triton.integrations import transformers

            return transformers.apply_psa(model, config_or_preset, **common)
        case None:
            raise unsupported("model", "a model or pipeline of diffusers or transformers", inner, library, None)
