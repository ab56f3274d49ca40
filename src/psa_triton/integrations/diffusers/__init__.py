"""PSA in diffusers' video transformers (Wan, CogVideoX): `apply_psa` attaches, the handle reports and detaches."""

from psa_triton.integrations.diffusers.attach import PSAHandle, apply_psa
from psa_triton.integrations.diffusers.cogvideox import context_parallel_plan as cogvideox_context_parallel_plan
from psa_triton.integrations.diffusers.stats import AttentionRecord, AttentionSummary, PSAStats

__all__ = [
    "AttentionRecord",
    "AttentionSummary",
    "PSAHandle",
    "PSAStats",
    "apply_psa",
    "cogvideox_context_parallel_plan",
]
