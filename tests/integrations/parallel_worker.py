"""Run by torchrun: each video of `CASES` in one process and shared by all of them; differences go to a JSON file a rank.

    torchrun --nproc_per_node 2 parallel_worker.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, DiffusionPipeline
from small_pipelines import (
    make_cogvideox_pipeline,
    make_cogvideox_transformer,
    make_video,
    make_wan_inputs,
    make_wan_pipeline,
    make_wan_transformer,
)
from torch.distributed.device_mesh import init_device_mesh

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import apply_psa, cogvideox_context_parallel_plan

SPARSE = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 4: (0.3, 0.6), 0: (0.6, 1)})
WARM_UP = SPARSE.replace(warmup_steps=1)
Video = tuple[torch.Tensor, list[tuple[int, int, bool]]]


def share_tokens(transformer: torch.nn.Module, plan: dict[str, Any] | None = None, **changes: Any) -> None:
    degrees = {"ring_degree": 1, "ulysses_degree": dist.get_world_size()} | changes
    mesh = init_device_mesh("cpu", tuple(degrees.values()), mesh_dim_names=("ring", "ulysses"))
    anything = degrees["ring_degree"] == 1
    config = ContextParallelConfig(**degrees, ulysses_anything=anything, mesh=mesh)
    transformer.enable_parallelism(config=config, cp_plan=plan)


def run_pipeline(make_pipe: Callable[[], DiffusionPipeline], config: PSAConfig | str, **more: Any) -> Callable[..., Video]:
    """A case: 105 visual tokens, an odd number, through a whole pipeline."""

    def run(shared: bool) -> Video:
        pipe = make_pipe()
        with apply_psa(pipe, config) as handle:
            if shared:
                wan = hasattr(pipe.transformer, "rope")
                share_tokens(pipe.transformer, None if wan else cogvideox_context_parallel_plan())
            video = make_video(pipe, **more)
        return video, [(r.step, r.tokens, r.sparse) for r in handle.stats().records]

    return run


def run_per_token_timesteps(shared: bool) -> Video:
    """Every token at a timestep of its own: each must get its own modulation, in the process that holds it."""
    transformer = make_wan_transformer()
    if shared:
        share_tokens(transformer)
    inputs = make_wan_inputs(timestep=torch.linspace(0, 999, 105)[None])
    with torch.no_grad(), apply_psa(transformer, SPARSE) as handle:
        out = transformer(**inputs).sample
    return out, [(r.step, r.tokens, r.sparse) for r in handle.stats().records]


def run_gradients(shared: bool) -> Video:
    """The gradient of the patch embedding's bias, of which each process sees a share: their sum is that of one."""
    transformer = make_cogvideox_transformer()
    if shared:
        share_tokens(transformer, cogvideox_context_parallel_plan())
    return torch.zeros(1), []


CASES = {
    "wan": run_pipeline(make_wan_pipeline, WARM_UP, guidance_scale=3.0),
    "wan-three-heads": run_pipeline(
        lambda: make_wan_pipeline(make_wan_transformer(num_attention_heads=3)), SPARSE
    ),
    "wan-no-order": run_pipeline(make_wan_pipeline, SPARSE.replace(use_rearrange=False)),
    "wan-clusters": run_pipeline(make_wan_pipeline, SPARSE.replace(rearrange_method="Hybrid"), grid=(4, 8, 9)),
    "wan-per-token-timesteps": run_per_token_timesteps,
    "cogvideox": run_pipeline(make_cogvideox_pipeline, WARM_UP, guidance_scale=3.0),
    "cogvideox-three-heads": run_pipeline(
        lambda: make_cogvideox_pipeline(make_cogvideox_transformer(num_attention_heads=3)), SPARSE
    ),
    "cogvideox-no-rotary": run_pipeline(
        lambda: make_cogvideox_pipeline(make_cogvideox_transformer(use_rotary_positional_embeddings=False)), SPARSE
    ),
    "cogvideox-dense": run_pipeline(make_cogvideox_pipeline, "CogVideo_5b/baseline"),
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # diffusers numbers devices by `rank % device_count()`, which is no number where there is no accelerator.
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo")
    results = {}
    for name, run in CASES.items():
        alone, alone_records = run(shared=False)
        shared, records = run(shared=True)
        results[name] = {
            "difference": ((shared - alone).abs().max() / alone.std()).item(),
            "same_records": records == alone_records,
            "calls": len(records),
        }
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
