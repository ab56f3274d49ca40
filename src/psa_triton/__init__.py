"""Pyramid Sparse Attention: key and value blocks read at one of several resolutions, by estimated importance."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psa_triton.attention import PSAAttention, psa_attention
    from psa_triton.config import PSAConfig
    from psa_triton.importance import block_importance
    from psa_triton.integrations.attach import apply_psa
    from psa_triton.integrations.handle import remove_psa
    from psa_triton.kernels import pyramid_attention
    from psa_triton.levels import density, select_levels
    from psa_triton.presets import load_preset

__version__ = "0.2.0"

__all__ = [
    "PSAAttention",
    "PSAConfig",
    "apply_psa",
    "block_importance",
    "density",
    "load_preset",
    "psa_attention",
    "pyramid_attention",
    "remove_psa",
    "select_levels",
]

# Loaded at first use: presets and the command line need no torch, the operator needs no diffusers.
_HOME = {
    "PSAAttention": ".attention",
    "PSAConfig": ".config",
    "apply_psa": ".integrations.attach",
    "block_importance": ".importance",
    "density": ".levels",
    "load_preset": ".presets",
    "psa_attention": ".attention",
    "pyramid_attention": ".kernels",
    "remove_psa": ".integrations.handle",
    "select_levels": ".levels",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
