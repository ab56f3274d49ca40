"""Times and memory of everything that is compared, for one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from flex_pyramid import flex_pyramid
from shares import Ratios
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from triton.testing import do_bench

from gpu.cases import (
    BLOCK_N,
    BLOCKS,
    DENSE,
    ESTIMATORS,
    MASKS,
    Inputs,
    choose_levels,
    dense_attention,
    estimate,
    ratios_of_density,
    read_share,
    sparse_attention,
    whole_path,
)
from psa_triton.gpu import Launch
from psa_triton.tools.bench.memory import scratch_bytes
from psa_triton.tools.shapes import AttentionShape

DENSITIES = (0.10, 0.15, 0.25, 1.0)
SMALL_DENSITIES = (0.15, 1.0)
STEPS = {"_pool_kernel": "pyramid", "_list_blocks_kernel": "schedule", "_attend_kernel": "kernel"}
"""What the kernels of the attention are called in the report."""
FLEX_MARGIN = 0.02
"""FlexAttention's output may differ from the kernel's by this much, relatively: both have 16-bit weights."""

FLEX_BACKWARD_KEYS = 128
"""Its backward has tiles of so many keys, and takes no masks of smaller blocks."""

Times = dict[str, Any]


def measure_dense(x: Inputs) -> Times:
    """Forward and backward of each dense kernel, or why it refuses."""
    found: Times = {}
    for backend in DENSE:
        try:
            found[backend] = {
                "forward_ms": replay_ms(partial(dense_attention, x, backend), x.device),
                "backward_ms": backward_ms(partial(_dense, x.shape, backend), *x.tensors()),
            }
        except RuntimeError as error:
            found[backend] = {"refused": str(error).splitlines()[0]}
    return found


def _dense(shape: AttentionShape, backend: str, *tensors: Tensor) -> Tensor:
    return dense_attention(Inputs(shape, *tensors), backend)


def _sparse(shape: AttentionShape, levels: Tensor, coarsest: int, *tensors: Tensor) -> Tensor:
    return sparse_attention(Inputs(shape, *tensors), levels, coarsest)


def measure_masks(x: Inputs, densities: tuple[float, ...]) -> list[Times]:
    """Every density, as a pyramid and with levels 1 and 0 alone; at density 1 these are the same."""
    importance = estimate(x, "pooled")
    found = []
    for density in densities:
        for mask in MASKS if density < 1.0 else ("levels 1/0",):
            ratios = ratios_of_density(importance, x.shape, MASKS[mask], density)
            found.append({"mask": mask, "wanted_density": density, **measure_mask(x, importance, ratios)})
    return found


def measure_mask(x: Inputs, importance: Tensor, ratios: Ratios) -> Times:
    levels = choose_levels(importance, x.shape, ratios)
    whole = {method: partial(whole_path, x, method, ratios) for method in ESTIMATORS}
    return {
        "density": read_share(levels, x.shape),
        "steps_ms": {name: replay_ms(step, x.device) for name, step in steps(x, importance, levels, ratios).items()},
        "whole_ms": {method: replay_ms(run, x.device) for method, run in whole.items()},
        "backward_ms": backward_ms(partial(_sparse, x.shape, levels, max(ratios)), *x.tensors()),
        "scratch_over_kv": {method: scratch_over_kv(run, x) for method, run in whole.items()},
    }


def steps(x: Inputs, importance: Tensor, levels: Tensor, ratios: Ratios) -> dict[str, Callable[[], Any]]:
    """The steps of the whole path, each on its own; those of the attention are its launches, taken apart."""
    found: dict[str, Callable[[], Any]] = {f"importance, {m}": partial(estimate, x, m) for m in ESTIMATORS}
    found["selection"] = partial(choose_levels, importance, x.shape, ratios)
    launches = record_launches(partial(sparse_attention, x, levels, max(ratios)))
    for kernel, step in STEPS.items():
        if mine := [launch for launch in launches if launch.kernel.fn.__name__ == kernel]:
            found[step] = partial(_run_all, mine)
    return found


def record_launches(run: Callable[[], Any]) -> list[Launch]:
    """What `run` launches, in order."""
    launches: list[Launch] = []
    launch_now = Launch.run

    def record(launch: Launch) -> None:
        launches.append(launch)
        launch_now(launch)

    with patch.object(Launch, "run", record):
        run()
    return launches


def _run_all(launches: list[Launch]) -> None:
    for launch in launches:
        launch.run()


def measure_flex(x: Inputs) -> Times:
    """FlexAttention over the pyramid of density .15, compiled on a GPU, or why it does not run.

    Its backward ends at the pyramid's rows, not at the tokens.
    """
    importance = estimate(x, "pooled")
    ratios = ratios_of_density(importance, x.shape, MASKS["pyramid"], 0.15)
    levels = choose_levels(importance, x.shape, ratios)
    torch.compiler.reset()  # or it would stop compiling after a few shapes
    attention = torch.compile(flex_attention, dynamic=False) if x.device.type == "cuda" else flex_attention
    build = partial(flex_pyramid, x.k, x.v, levels, **BLOCKS, is_causal=x.shape.is_causal)
    settings = dict(scale=x.shape.dim**-0.5, attention=attention)
    found: Times = {}
    try:
        run = partial(build(kv_block=BLOCK_N).attend, x.q, **settings)
        found["difference"] = relative_difference(run(), sparse_attention(x, levels, max(ratios)))
        if not found["difference"] < FLEX_MARGIN:
            return found | {"refused": "its output differs from the kernel's"}
        found["forward_ms"] = replay_ms(run, x.device)
        pyramid = build(kv_block=FLEX_BACKWARD_KEYS)

        def over_rows(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return replace(pyramid, keys=keys, values=values).attend(q, **settings)

        found["backward_ms"] = backward_ms(over_rows, x.q, pyramid.keys, pyramid.values)
    except (RuntimeError, ValueError) as error:
        found["refused"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def replay_ms(run: Callable[[], Any], device: torch.device) -> float | None:
    """Median milliseconds of a replay of `run`, captured in a CUDA graph; on a CPU `run` runs once and is not timed."""
    if device.type != "cuda":
        run()
        return None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # kernels compile, libraries make their workspaces
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return _median_ms(graph.replay)


def backward_ms(attention: Callable[..., Tensor], *inputs: Tensor) -> float | None:
    """Median milliseconds of the gradients of `inputs`; on a CPU they are computed once and not timed."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = attention(*leaves)
    upstream = torch.randn_like(out)

    def run() -> None:
        torch.autograd.grad(out, leaves, upstream, retain_graph=True)

    if out.device.type == "cuda":
        return _median_ms(run)
    run()
    return None


def scratch_over_kv(run: Callable[[], Tensor], x: Inputs) -> float | None:
    """Bytes at the peak of a run beside inputs and output, over those of K and V."""
    scratch = scratch_bytes(run, x.device) if x.device.type == "cuda" else None
    return None if scratch is None else scratch / (x.k.nbytes + x.v.nbytes)


def _median_ms(run: Callable[[], Any]) -> float:
    """Between CUDA events; the L2 cache is written over before every run."""
    return float(do_bench(run, return_mode="median"))
