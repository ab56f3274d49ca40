"""PSA in diffusers' diffusion transformers: `apply_psa` attaches, the handle reports and detaches."""

from psa_triton.integrations.diffusers.attach import apply_psa, layer_count
from psa_triton.integrations.diffusers.families import Family, latent_grid, register_family
from psa_triton.integrations.diffusers.forward import OnLevels
from psa_triton.integrations.diffusers.parallel import cogvideox_context_parallel_plan
from psa_triton.integrations.diffusers.pipelines import check_video_scale, pipeline_scale, spare_frames, transformers_of
from psa_triton.integrations.diffusers.stats import AttentionRecord, AttentionSummary, LevelRecord, PSAStats
from psa_triton.integrations.handle import PSAHandle

__all__ = [
    "AttentionRecord",
    "AttentionSummary",
    "Family",
    "LevelRecord",
    "OnLevels",
    "PSAHandle",
    "PSAStats",
    "apply_psa",
    "check_video_scale",
    "cogvideox_context_parallel_plan",
    "latent_grid",
    "layer_count",
    "pipeline_scale",
    "register_family",
    "spare_frames",
    "transformers_of",
]
