"""PSA in diffusers' video transformers (Wan, CogVideoX): `apply_psa` attaches, the handle reports and detaches."""

from psa_triton.integrations.diffusers.attach import PSAHandle, apply_psa, layer_count
from psa_triton.integrations.diffusers.cogvideox import context_parallel_plan as cogvideox_context_parallel_plan
from psa_triton.integrations.diffusers.scale import check_video_scale, pipeline_scale
from psa_triton.integrations.diffusers.state import OnLevels
from psa_triton.integrations.diffusers.stats import AttentionRecord, AttentionSummary, LevelRecord, PSAStats

__all__ = [
    "AttentionRecord",
    "AttentionSummary",
    "LevelRecord",
    "OnLevels",
    "PSAHandle",
    "PSAStats",
    "apply_psa",
    "check_video_scale",
    "cogvideox_context_parallel_plan",
    "layer_count",
    "pipeline_scale",
]
