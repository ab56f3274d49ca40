"""Selection stays on the device: nothing waits for it, and no table is copied to it.

Tensors on the `meta` device stand for a GPU's: their values cannot be read, and a copy would start at a CPU tensor.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psa_triton.blocks import Blocks
from psa_triton.config import SimThresholds
from psa_triton.importance import block_importance
from psa_triton.levels import cap_levels, density, exempt_levels, read_density, select_levels, similarity_caps
from psa_triton.levels.budget import budget_levels, expected_errors

BLOCKS = Blocks(32, 16, 150, 170, is_causal=True, exempt_queries=((0, 40),), exempt_keys=((0, 40),))
SHARES = {1: (0.0, 0.4), 2: (0.4, 0.6), 8: (0.6, 0.8), 0: (0.8, 1.0)}


class StaysOnDevice(TorchDispatchMode):
    """Fails on any operation that reads or makes a CPU tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        assert all(x.device.type == "meta" for x in tensors), f"{func} touches a CPU tensor"
        return result


def levels():
    return torch.empty(1, 4, 5, 11, dtype=torch.int8, device="meta")


def keys():
    return torch.empty(1, 2, 170, 32, device="meta")


STEPS = {
    **{
        method: lambda method=method: block_importance(
            torch.empty(1, 4, 150, 32, device="meta"), keys(), block_m=32, block_n=16, method=method, is_causal=True
        )
        for method in ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative")
    },
    "topk": lambda: select_levels(levels().float(), SHARES, mode="topk"),
    "thresholdbound": lambda: select_levels(levels().float(), SHARES, mode="thresholdbound"),
    "expected errors": lambda: expected_errors(
        torch.empty(1, 4, 150, 32, device="meta"), keys(), keys(), BLOCKS, scale=0.25, impl="reference"
    ),
    **{
        f"budget of a {scope}": lambda scope=scope: budget_levels(
            levels().float(),
            torch.empty(1, 4, 11, 6, device="meta"),
            BLOCKS,
            0.3,
            scope=scope,
            keep_first_block=True,
            impl="reference",
        )
        for scope in ("row", "layer")
    },
    "similarity": lambda: cap_levels(levels(), similarity_caps(keys(), 16, SimThresholds())),
    "exemptions": lambda: exempt_levels(levels(), BLOCKS),
    "density": lambda: density(levels()),
    "read density": lambda: read_density(levels(), BLOCKS),
}


@pytest.mark.parametrize("step", list(STEPS.values()), ids=list(STEPS))
def test_no_step_leaves_the_device(step):
    with StaysOnDevice():
        assert step().device.type == "meta"


def test_a_copied_table_is_found():
    with pytest.raises(AssertionError, match="touches a CPU tensor"), StaysOnDevice():
        torch.tensor([1, 2]).to("meta")
