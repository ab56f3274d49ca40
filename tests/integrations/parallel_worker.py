"""Run by torchrun: each video of `CASES` in one process and shared by all; each rank writes the differences as JSON.

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
from diffusers import CogVideoXTransformer3DModel, ContextParallelConfig, DiffusionPipeline, WanTransformer3DModel
from small_families import SMALL
from small_families import run as run_small
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
from psa_triton.integrations.diffusers import PSAHandle, apply_psa, cogvideox_context_parallel_plan
from psa_triton.integrations.diffusers.parallel import HeadParallel, Stream

SPARSE = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 4: (0.3, 0.6), 0: (0.6, 1)})
WARM_UP = SPARSE.replace(warmup_steps=1)
SHARES = (52, 53, 144)
"""Tokens of a process: of 105 and of 288."""

Transformer = WanTransformer3DModel | CogVideoXTransformer3DModel
Video = tuple[torch.Tensor, list[tuple[int | None, int, bool]]]


def share_tokens(transformer: Transformer) -> None:
    """Enable context parallelism, and check with each forward that the last layer does see a share of the tokens."""
    plan = cogvideox_context_parallel_plan() if isinstance(transformer, CogVideoXTransformer3DModel) else None
    processes = dist.get_world_size()
    mesh = init_device_mesh("cpu", (1, processes), mesh_dim_names=("ring", "ulysses"))
    config = ContextParallelConfig(ulysses_degree=processes, ulysses_anything=True, mesh=mesh)
    transformer.enable_parallelism(config=config, cp_plan=plan)

    def check_share(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert args[0].shape[1] in SHARES, args[0].shape

    transformer.proj_out.register_forward_pre_hook(check_share)


def records(handle: PSAHandle) -> list[tuple[int | None, int, bool]]:
    return [(record.step, record.tokens, record.sparse) for record in handle.stats().records]


def run_pipeline(
    make_pipe: Callable[[], DiffusionPipeline], config: PSAConfig | str, **more: Any
) -> Callable[..., Video]:
    """A case: 105 visual tokens, an odd number, through a whole pipeline."""

    def run(shared: bool) -> Video:
        pipe = make_pipe()
        with apply_psa(pipe, config, min_tokens=0) as handle:
            if shared:
                share_tokens(pipe.transformer)
            video = make_video(pipe, **more)
        return video, records(handle)

    return run


def run_per_token_timesteps(shared: bool) -> Video:
    """Every token at a timestep of its own: each must get its own modulation, in the process that holds it."""
    transformer = make_wan_transformer()
    if shared:
        share_tokens(transformer)
    inputs = make_wan_inputs(timestep=torch.linspace(0, 999, 105)[None])
    with torch.no_grad(), apply_psa(transformer, SPARSE, min_tokens=0) as handle:
        out = transformer(**inputs, return_dict=False)[0]
    return out, records(handle)


def run_joint(name: str) -> Callable[..., Video]:
    """Text and image are both shared, each for itself, and stand in every process's share in turn; so is a mask."""

    def run(shared: bool) -> Video:
        transformer, inputs = SMALL[name].make()
        if shared:
            share_tokens(transformer)
        with torch.no_grad(), apply_psa(transformer, SPARSE, min_tokens=0) as handle:
            out = run_small(transformer, inputs)
        return out, records(handle)

    return run


CASES = {
    "wan": run_pipeline(make_wan_pipeline, WARM_UP, guidance_scale=3.0),
    "wan-three-heads": run_pipeline(lambda: make_wan_pipeline(make_wan_transformer(num_attention_heads=3)), SPARSE),
    "wan-clusters": run_pipeline(make_wan_pipeline, SPARSE.replace(rearrange_method="Hybrid"), grid=(4, 8, 9)),
    "wan-per-token-timesteps": run_per_token_timesteps,
    "flux": run_joint("flux"),
    "qwen-image": run_joint("qwen-image"),
    "cogvideox": run_pipeline(make_cogvideox_pipeline, WARM_UP, guidance_scale=3.0),
    "cogvideox-three-heads": run_pipeline(
        lambda: make_cogvideox_pipeline(make_cogvideox_transformer(num_attention_heads=3)), SPARSE
    ),
    "cogvideox-dense": run_pipeline(make_cogvideox_pipeline, "CogVideo_5b/baseline"),
}


def gradient_error() -> float:
    """Heads attended elsewhere send their gradients back: here attention is a square, whose gradient is known."""
    exchange, tokens = HeadParallel(dist.group.WORLD), Stream(105, shared=True)
    x = torch.randn(1, 3, 53 - dist.get_rank(), 8, generator=torch.Generator().manual_seed(dist.get_rank()))
    x.requires_grad_()
    exchange.to_tokens(exchange.to_heads(x, [tokens]) ** 2, 3, [tokens]).sum().backward()
    return (x.grad - 2 * x).abs().max().item()


def all_gather_by_broadcast(tensors: list[torch.Tensor], tensor: torch.Tensor, group: dist.ProcessGroup) -> None:
    """`all_gather` of tensors of different sizes, which diffusers' ragged shares need: NCCL has it, gloo does not."""
    for rank, target in enumerate(tensors):
        if rank == group.rank():
            target.copy_(tensor)
        dist.broadcast(target, group_src=rank, group=group)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # diffusers numbers devices by `rank % device_count()`, which is no number where there is no accelerator.
    torch.accelerator.device_count = lambda: 1
    dist.all_gather = all_gather_by_broadcast
    # Named with its device: else diffusers takes sizes to the GPU that torch is built for, there or not.
    dist.init_process_group("cpu:gloo")
    results = {}
    for name, run in CASES.items():
        alone, alone_records = run(shared=False)
        shared, shared_records = run(shared=True)
        results[name] = {
            "difference": ((shared - alone).abs().max() / alone.std()).item(),
            "records": [alone_records, shared_records],
        }
    results["gradient"] = {"difference": gradient_error()}
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
