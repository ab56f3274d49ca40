"""An item of a batch gets what it gets alone, bit for bit, whatever its neighbours."""

import pytest
import torch

from psa_triton import PSAConfig, block_importance
from psa_triton.attention import sparse_attention

CONFIGS = {
    "topk": PSAConfig(use_sim_mask=True),
    "thresholdbound": PSAConfig(mask_mode="thresholdbound", importance="pooled"),
    "budget": PSAConfig(mask_mode="budget", budget=0.4),
    "budget of a layer": PSAConfig(mask_mode="budget", budget=0.4, budget_scope="layer", importance="sampled"),
    "antidiagonal": PSAConfig(importance="antidiagonal"),
    "finely sampled": PSAConfig(importance="finely_sampled"),
    "k-means": PSAConfig(rearrange_method="SemanticAware"),
    "k-means along the curve": PSAConfig(rearrange_method="Hybrid"),
}
GRID = (3, 10, 10)


def inputs(dtype, items=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, items, 4, 300, 16, generator=generator)
    x = x + x.cumsum(-2) / 8
    # Items of very different size: what they shared would show.
    q, k, v = (x * torch.tensor([1.0, 30.0, 0.01])[:, None, None, None]).to(dtype)
    return q, k[:, :2], v[:, :2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_levels_and_output(name, dtype):
    config = CONFIGS[name].replace(block_m=32, block_n=32)
    q, k, v = inputs(dtype)
    grid = GRID if name.startswith("k-means") else None
    out, levels = sparse_attention(q, k, v, config.replace(use_rearrange=grid is not None), grid=grid, impl="cpu")
    for i in range(len(q)):
        alone = (x[i : i + 1].clone() for x in (q, k, v))
        single, single_levels = sparse_attention(
            *alone, config.replace(use_rearrange=grid is not None), grid=grid, impl="cpu"
        )
        assert torch.equal(single_levels[0], levels[i])
        # The levels are the same bits; sums of the attention itself may come in another order.
        torch.testing.assert_close(single[0], out[i])


def test_levels_of_gpu_kernels():
    pytest.importorskip("triton")
    q, k, v = (x[..., :70, :] for x in inputs(torch.float32, 3))
    for name in ("topk", "budget"):
        config = CONFIGS[name].replace(block_m=32, block_n=32, use_rearrange=False)
        _, levels = sparse_attention(q, k, v, config, impl="triton")
        _, single = sparse_attention(q[1:2], k[1:2], v[1:2], config, impl="triton")
        assert torch.equal(single[0], levels[1])


def test_a_generator_draws_alike_for_all_items():
    q, k, _ = inputs(torch.float32)
    both, single = (
        block_importance(a, b, block_m=32, block_n=32, generator=torch.Generator().manual_seed(3))
        for a, b in ((q, k), (q[2:], k[2:]))
    )
    torch.testing.assert_close(both[2:], single)
