"""Times and memory of everything that is compared, for one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from flex_pyramid import flex_pyramid
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from triton.testing import do_bench

from gpu import cases
from gpu.cases import BLOCK_N, BLOCKS, DENSE, ESTIMATORS, MASKS, Inputs
from gpu.prepare import record_launches
from psa_triton.gpu import Launch
from psa_triton.tools.bench.memory import scratch_bytes
from psa_triton.tools.shapes import AttentionShape

FLEX_MARGIN = 0.02
"""FlexAttention's output may differ from the kernel's by this much, relatively: both have 16-bit weights."""
FLEX_BACKWARD_KEYS = 128
"""Its backward has tiles of so many keys, and takes no masks of smaller blocks."""

Times = dict[str, Any]


def pieces(shape: AttentionShape, *, presets: bool, flex: bool) -> dict[str, Callable[[Inputs], Times]]:
    """What is measured of a shape, one piece after another, what matters most first."""
    found: dict[str, Callable[[Inputs], Times]] = {
        f"dense, {name}": partial(measure_dense, backend=name) for name in DENSE
    }
    found |= {mask: partial(measure_mask, mask=mask) for mask in list(MASKS)[:1]}
    if presets:
        found |= {f"preset {name}": partial(measure_preset, preset=name) for name in cases.presets_of(shape)}
    found |= {mask: partial(measure_mask, mask=mask) for mask in list(MASKS)[1:]}
    return found | ({"flex": measure_flex} if flex else {})


def launching(device: torch.device, shapes: Iterable[AttentionShape], presets: bool) -> Iterator[Callable[[], Any]]:
    """Everything of `pieces` that launches a kernel of this library, for `prepare`."""
    for shape in shapes:
        x = Inputs.draw(shape, device)
        ratios = cases.ratios_of(next(iter(MASKS)))
        yield from (partial(cases.whole, x, method, ratios) for method in ESTIMATORS)
        yield partial(backward_ms, partial(_sparse, shape, cases.levels_of(x)), *x.tensors())
        yield from (cases.preset_steps(x, name)[0] for name in (cases.presets_of(shape) if presets else ()))


def measure_dense(x: Inputs, backend: str) -> Times:
    """Forward and backward of a dense kernel."""
    return {
        "forward_ms": replay_ms(partial(cases.dense, x, backend)),
        "backward_ms": backward_ms(lambda *qkv: cases.dense(Inputs(x.shape, *qkv), backend), *x.tensors()),
    }


def measure_mask(x: Inputs, mask: str) -> Times:
    """The kernels of the attention and its backward; at the first mask what comes before, too: it is alike for all."""
    ratios = cases.ratios_of(mask)
    levels = cases.levels_of(x, ratios)
    found = {
        "density": cases.density_of(x, levels),
        "kernels_ms": kernels_ms(partial(cases.sparse, x, levels)),
        "backward_ms": backward_ms(partial(_sparse, x.shape, levels), *x.tensors()),
    }
    if mask != next(iter(MASKS)):
        return found
    importance = cases.estimate(x, ESTIMATORS[0])
    whole = {f"whole, {method}": partial(cases.whole, x, method, ratios) for method in ESTIMATORS}
    steps = {f"importance, {method}": partial(cases.estimate, x, method) for method in ESTIMATORS}
    steps |= {"selection": partial(cases.choose, x, importance, ratios), "kernels": partial(cases.sparse, x, levels)}
    return found | {
        "steps_ms": {name: replay_ms(step) for name, step in (steps | whole).items()},
        "scratch_over_kv": {name: scratch_over_kv(run, x) for name, run in whole.items()},
    }


def _sparse(shape: AttentionShape, levels: Tensor, *qkv: Tensor) -> Tensor:
    return cases.sparse(Inputs(shape, *qkv), levels)


def measure_preset(x: Inputs, preset: str) -> Times:
    """A shipped preset as an attached model runs it, whole, by step and by kernel."""
    whole, steps = cases.preset_steps(x, preset)
    return {
        "density": float(steps["density"]().mean()),
        "steps_ms": {name: replay_ms(step) for name, step in (steps | {"whole": whole}).items()},
        "kernels_ms": kernels_ms(whole),
        "scratch_over_kv": {"whole": scratch_over_kv(whole, x)},
    }


def measure_flex(x: Inputs) -> Times:
    """FlexAttention over the pyramid of density .15, compiled on a GPU. Its backward ends at the pyramid's rows."""
    levels = cases.levels_of(x, cases.ratios_of(next(iter(MASKS))))
    torch.compiler.reset()  # or it would stop compiling after a few shapes
    attention = torch.compile(flex_attention, dynamic=False) if x.q.is_cuda else flex_attention
    build = partial(flex_pyramid, x.k, x.v, levels, **BLOCKS, is_causal=x.shape.is_causal)
    settings = dict(scale=x.shape.dim**-0.5, attention=attention)
    run = partial(build(kv_block=BLOCK_N).attend, x.q, **settings)
    out, expected = run().float(), cases.sparse(x, levels).float()
    difference = float((out - expected).norm() / expected.norm())
    if not difference < FLEX_MARGIN:
        raise ValueError(f"its output differs from the kernel's by {difference:.3f}")
    pyramid = build(kv_block=FLEX_BACKWARD_KEYS)
    over_rows = lambda q, keys, values: replace(pyramid, keys=keys, values=values).attend(q, **settings)  # noqa: E731
    return {
        "difference": difference,
        "forward_ms": replay_ms(run),
        "backward_ms": backward_ms(over_rows, x.q, pyramid.keys, pyramid.values),
    }


def kernels_ms(run: Callable[[], Any]) -> dict[str, float | None]:
    """What each kernel of this library takes, all its launches in `run` together."""
    name = lambda launch: launch.kernel.fn.__name__.strip("_").removesuffix("_kernel")  # noqa: E731
    launches = sorted(record_launches(run), key=name)
    return {kernel: replay_ms(partial(_run_all, list(mine))) for kernel, mine in groupby(launches, name)}


def _run_all(launches: list[Launch]) -> None:
    for launch in launches:
        launch.run()


def replay_ms(run: Callable[[], Any]) -> float | None:
    """Median milliseconds of a replay of `run`, captured in a CUDA graph; without a GPU `run` runs and is not timed.

    So times hold no launch overhead, and what waits for the device cannot be captured.
    """
    if not torch.cuda.is_available():
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
    """Median milliseconds of the gradients of `inputs`; without a GPU they are computed and not timed."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = attention(*leaves)
    run = partial(torch.autograd.grad, out, leaves, torch.randn_like(out), retain_graph=True)
    if out.is_cuda:
        return _median_ms(run)
    run()
    return None


def scratch_over_kv(run: Callable[[], Tensor], x: Inputs) -> float | None:
    """Bytes at the peak of a run beside inputs and output, over those of K and V; None without a GPU."""
    scratch = scratch_bytes(run, x.q.device) if x.q.is_cuda else None
    return None if scratch is None else scratch / (x.k.nbytes + x.v.nbytes)


def _median_ms(run: Callable[[], Any]) -> float:
    """Between CUDA events; the L2 cache is written over before every run."""
    return float(do_bench(run, return_mode="median"))
