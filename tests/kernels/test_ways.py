"""Every way of the gathered attention, on any machine, against the oracle; and which way is taken on which."""

import pytest
import torch
from accuracy import (
    DTYPES,
    assert_as_good_as_eager,
    assert_gradients_as_good_as_eager,
    normal_like,
    random_levels,
    tensors,
)

from psa_triton import products
from psa_triton.blocks import Blocks
from psa_triton.kernels import gathered
from psa_triton.kernels.gathered import ways
from psa_triton.kernels.gathered.ways import BLOCKS, FUSED, STACKS, WAYS, choose_way
from psa_triton.kernels.reading import Reading

ALL_DTYPES = [*DTYPES, torch.float64]


@pytest.fixture(params=["as here", "wide vectors", "tiles"])
def processor(request, monkeypatch):
    """This processor, and the choices that one with AVX-512 or AMX for bfloat16 makes: slow here, and as right."""
    if request.param != "as here":
        pretend(monkeypatch, wide=True, bfloat16=True, tiles=request.param == "tiles")
    return request.param


def pretend(monkeypatch, wide, bfloat16, tiles):
    """That the processor has these."""
    monkeypatch.setattr(products, "has_wide_vectors", lambda: wide)
    for module in (products, ways):
        monkeypatch.setattr(module, "has_tiles", lambda: tiles)
        monkeypatch.setattr(module, "multiplies", lambda dtype: bfloat16 and dtype != torch.float16)


@pytest.mark.parametrize("want_lse", [False, True], ids=["out", "lse"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.name)
def test_every_way_is_right(processor, way, dtype, is_causal, want_lse, monkeypatch):
    monkeypatch.setattr(ways, "_LEAST", 1 << 15)  # several stacks of several blocks
    q, k, v = tensors(2, 4, 2, queries=300, keys=400, dim=32, dtype=dtype)
    levels = random_levels(q, k, 32, 64, among=(0, 1, 2, 4, 8, 16, 64))
    levels[0, 1, 2] = 0
    levels[1, 2, 3] = 1  # one long list
    kwargs = dict(block_m=32, block_n=64, is_causal=is_causal, pool_correction="isotropic")
    reading = Reading(32**-0.5, "isotropic", 64, "auto", "cpu")
    key_mask = torch.ones(2, 400, dtype=torch.bool)
    key_mask[0, :90], key_mask[1, 200:] = False, False
    for mask in (None, key_mask):
        blocks = Blocks.of(q, k, 32, 64, is_causal, mask)
        out, lse = gathered.pyramid_attention(q, k, v, levels, blocks, reading, want_lse=want_lse, way=way)
        assert_as_good_as_eager(out, q, k, v, levels, key_mask=mask, **kwargs)
        assert (lse is not None) == want_lse


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_gradients_are_right(processor, dtype, is_causal):
    q, k, v = tensors(1, 4, 2, queries=300, keys=400, dim=32, dtype=dtype)
    levels = random_levels(q, k, 32, 64, among=(0, 1, 2, 8, 64))
    kwargs = dict(block_m=32, block_n=64, is_causal=is_causal, pool_correction="isotropic")
    inputs = q, k, v, levels, Blocks.of(q, k, 32, 64, is_causal), Reading(32**-0.5, "isotropic", 64, "auto", "cpu")
    out, lse = gathered.pyramid_attention(*inputs, want_lse=True)
    grad_out = normal_like(q)
    grads = gathered.pyramid_attention_backward(grad_out, None, out, lse, *inputs)
    assert_gradients_as_good_as_eager(grads, grad_out, q, k, v, levels, **kwargs)


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.name)
def test_what_is_hidden_does_not_spoil(way):
    """NaN reaches the queries that see it and no others, through weights that a mask made 0 either."""
    q, k, v = tensors(1, 1, 1, queries=64, keys=64, dim=16)
    k[0, 0, 40], v[0, 0, 50] = torch.nan, torch.inf
    levels = torch.ones(1, 1, 2, 2, dtype=torch.int8)
    blocks, reading = Blocks.of(q, k, 32, 32, True), Reading(0.25, "none", 32, "auto", "cpu")
    out, _ = gathered.pyramid_attention(q, k, v, levels, blocks, reading, want_lse=False, way=way)
    assert out[0, 0, :40].isfinite().all()
    assert out[0, 0, 40:].isnan().any(-1).all()


@pytest.mark.parametrize(
    ("wide", "bfloat16", "tiles", "dtype", "work", "way"),
    [
        (False, False, False, torch.float32, 1 << 20, STACKS),
        (False, False, False, torch.bfloat16, 1 << 20, STACKS),
        (True, False, False, torch.float32, 1 << 20, STACKS),
        (True, False, False, torch.bfloat16, 1 << 20, STACKS),
        (True, True, False, torch.bfloat16, 1 << 24, STACKS),
        (True, True, False, torch.bfloat16, 1 << 25, BLOCKS),
        (True, True, False, torch.float16, 1 << 20, STACKS),
        (False, False, False, torch.bfloat16, 1 << 25, BLOCKS),
        (True, True, False, torch.float16, 1 << 25, BLOCKS),
        (True, True, True, torch.bfloat16, 1 << 25, FUSED),
        (True, True, True, torch.float32, 1 << 20, FUSED),
        (True, True, True, torch.float32, 1 << 25, FUSED),
    ],
)
def test_the_way_follows_from_the_processor_and_the_work(wide, bfloat16, tiles, dtype, work, way, monkeypatch):
    pretend(monkeypatch, wide, bfloat16, tiles)
    assert choose_way(dtype, torch.device("cpu"), work) is way
    assert choose_way(dtype, torch.device("meta"), work) is FUSED
