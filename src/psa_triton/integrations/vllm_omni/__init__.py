"""PSA in vLLM-Omni, on the slot of a backend for Ascend that other hardware leaves unused."""

from __future__ import annotations


def register() -> None:
    """Entry point `vllm_omni.general_plugins`: `RAINFUSION_ATTN` means PSA from now on. Again is fine."""
    from vllm_omni.diffusion.attention.backends.registry import (
        DiffusionAttentionBackendEnum,
        register_diffusion_backend,
    )
    from vllm_omni.platforms import current_omni_platform

    if current_omni_platform.is_npu():  # where RainFusion itself runs
        return
    backend = f"{__name__}.backend.PSABackend"
    register_diffusion_backend(DiffusionAttentionBackendEnum.RAINFUSION_ATTN, backend)
