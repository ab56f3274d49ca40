"""The operators as torch sees them: schemas, fake forms, gradients, and graphs without a break."""

import pytest
import torch
from accuracy import random_levels, tensors
from torch.library import opcheck

from psa_triton import PSAAttention, PSAConfig, pyramid_attention
from psa_triton.importance import _importance
from psa_triton.kernels import ops
from psa_triton.levels.choice import _choose
from psa_triton.ordering.grid import _traced_grid_order

IMPLS = ["cpu", "triton"]
CASES = [("none", None), ("isotropic", torch.arange(50)[None] % 7 > 1)]
"""Corrections, and keys that are there."""


def small(requires_grad, **kwargs):
    q, k, v = tensors(heads=4, key_heads=2, queries=40, keys=50, dim=16, **kwargs)
    return tuple(x.requires_grad_(requires_grad) for x in (q, k, v))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch 2.14's opcheck
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("correction", "key_mask"), CASES, ids=["plain", "corrected and masked"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "gradient"])
def test_the_forward_operator(impl, correction, key_mask, requires_grad):
    q, k, v = small(requires_grad)
    levels = random_levels(q, k, 16, 16)
    opcheck(ops.attend, (q, k, v, levels, key_mask, 16, 16, False, 0.25, correction, 8, "auto", impl, requires_grad))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("correction", "key_mask"), CASES, ids=["plain", "corrected and masked"])
def test_the_backward_operator(impl, correction, key_mask):
    q, k, v = small(False)
    levels = random_levels(q, k, 16, 16)
    inputs = (q, k, v, levels, key_mask, 16, 16, True, 0.25, correction, 8, "auto", impl)
    out, lse = ops.attend(*inputs, True)
    opcheck(ops.attend_backward, (torch.ones_like(q), lse, out, lse, *inputs))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", ["topk", "budget"])
def test_the_choice_of_levels(impl, mode):
    q, k, v = small(False)
    config = PSAConfig(block_m=32, block_n=32, mask_mode=mode, budget=0.4)
    importance = _importance(q, k, None, "sampled", 32, 32, False, 0.25, impl)
    opcheck(_importance, (q, k, None, "sampled", 32, 32, False, 0.25, impl))
    opcheck(_choose, (importance, q, k, v, None, config.text, False, [0, 3], [0, 3], 0.25, impl))


def test_the_grid_order():
    opcheck(_traced_grid_order, ("Gilbert", [2, 3, 5], [], 4, torch.device("cpu")))


def test_a_gradient_without_the_log_sum_exp_computes_it():
    q, k, v = small(True)
    levels = random_levels(q, k, 16, 16)
    grads = [
        torch.autograd.grad(
            ops.attend(q, k, v, levels, None, 16, 16, False, 0.25, "none", 8, "auto", "cpu", want_lse)[0].sum(),
            (q, k, v),
        )
        for want_lse in (True, False)
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_of_the_output_alone_the_log_sum_exp_alone_and_both(impl):
    levels = random_levels(*small(False)[:2], 16, 16)

    def gradients(which, impl):
        inputs = small(True)
        out, lse = pyramid_attention(*inputs, levels, block_m=16, block_n=16, impl=impl, return_lse=True)
        seen = lse.isfinite()
        loss = {"out": out.square().sum(), "lse": lse[seen].square().sum()}
        loss["both"] = loss["out"] + loss["lse"]
        return torch.autograd.grad(loss[which], inputs, allow_unused=True, materialize_grads=True)

    for which in ("out", "lse", "both"):
        for ours, expected in zip(gradients(which, impl), gradients(which, "reference"), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


SHARES = PSAConfig(block_m=32, block_n=32, use_sim_mask=True, mask_mode="thresholdbound")
GRAPHS = {
    "plain": (SHARES, {}),
    "corrected": (SHARES.replace(pool_correction="isotropic"), {}),
    "ordered": (SHARES, {"grid": (3, 4, 8), "prefix_tokens": 4}),
    "causal": (SHARES, {"is_causal": True}),
    "budget": (PSAConfig(block_m=32, block_n=32, mask_mode="budget", budget=0.4), {"is_causal": True}),
}


@pytest.mark.parametrize(
    ("name", "impl", "backend"),
    [("plain", "auto", "inductor"), ("plain", "triton", "aot_eager"), *((x, "auto", "aot_eager") for x in GRAPHS)],
)
def test_the_whole_operator_compiles_without_a_graph_break(name, impl, backend):
    torch.compiler.reset()
    config, call = GRAPHS[name]
    attention = PSAAttention(config)
    inputs = [x.requires_grad_() for x in tensors(queries=100, keys=100, dim=16)]
    out = torch.compile(attention, fullgraph=True, backend=backend)(*inputs, impl=impl, **call)
    expected = attention(*inputs, impl=impl, **call)
    torch.testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(x.square().sum(), inputs) for x in (out, expected))
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("impl", ["cpu", "torch", "triton"])
@pytest.mark.parametrize("unknown", [-128, -64, 3, 32, 127])
def test_levels_that_are_none_are_not_read_where_none_looks_for_them(unknown, impl):
    """As in a graph, and while a CUDA graph is captured."""
    q, k, v = small(True)
    levels = torch.ones(1, 4, 3, 4, dtype=torch.int8)
    settings = None, 16, 16, False, 0.25, "none", 16, "auto", impl
    results = []
    for level in (0, unknown):
        levels[..., 1] = level
        out, _ = ops.attend(q, k, v, levels, *settings, True)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    assert all(map(torch.equal, *results))
