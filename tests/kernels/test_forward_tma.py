"""The forward kernel by TMA, which no GPU has run: its own functions on what stands in for Gluon, against float64."""

import pytest
import torch
from accuracy import assert_as_good_as_eager, oracle, random_levels, tensors

pytest.importorskip("triton")

import stand_in_gluon

from psa_triton.blocks import Blocks
from psa_triton.gpu import Launch
from psa_triton.kernels import Reading
from psa_triton.kernels.triton import forward, forward_tma, tiles
from psa_triton.kernels.triton.operands import Operands, pooled_operands
from psa_triton.kernels.triton.schedule import list_blocks
from psa_triton.kernels.triton.tiles import Tiles
from psa_triton.tools.bench.tiles import only


def attend(monkeypatch, q, k, v, levels, n, tile, module=forward_tma):
    """Output and log-sum-exp by the kernel of `module`, which a user's table names."""
    blocks, coarsest, launches = Blocks.of(q, k, 128, n), min(n // 8, 8), []
    lists = list_blocks(levels, coarsest.bit_length(), blocks)
    operands = pooled_operands(q, k, v, blocks, Reading(1.0, "none", coarsest, "auto", "triton"))
    monkeypatch.setattr(tiles, "current_target", lambda device: "sm_90")
    monkeypatch.setattr("psa_triton.kernels.triton.forward_tma.attend_tma", module.attend_tma)
    with monkeypatch.context() as patch, only(tile, "attend_tma"):
        patch.setattr(Launch, "run", lambda launch: launches.append(launch))
        out, lse = forward.attend(operands, lists, blocks, q.shape[-1] ** -0.5)
    (launch,) = launches
    assert launch.kernel.fn.__name__ == "_attend_tma_kernel"
    out.fill_(torch.nan)
    lse.fill_(torch.nan)
    stand_in_gluon.run(launch, module)
    return out, lse


def inputs(queries, keys, n=64, dim=128, dtype=torch.float16):
    q, k, v = tensors(2, 2, 1, queries, keys, dim=dim, dtype=dtype)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))  # as models hand them over
    levels = random_levels(q, k, 128, n, [level for level in (0, 1, 2, 4, 8) if level <= n // 8])
    levels[0, 0] = 0
    levels[0, 1, :, -1], levels[1, 0, :, -1], levels[1, 1, :, -1] = 1, 2, min(n // 8, 8)
    return q, k, v, levels


@pytest.mark.usefixtures("bfloat16_is_rounded")
@pytest.mark.parametrize(
    ("queries", "keys", "n", "dim", "dtype"),
    [
        (300, 1000, 64, 128, torch.float16),  # more tiles than slots; the last block has 40 keys
        (130, 1024, 128, 64, torch.bfloat16),  # no ragged end
        (
            40,
            187,
            64,
            64,
            torch.float16,
        ),  # fewer keys than a tile; of 59 in the last block each level has a short group
        (40, 187, 32, 64, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("keys_of_tile", [64, 128])
def test_as_good_as_eager(monkeypatch, queries, keys, n, dim, dtype, keys_of_tile):
    q, k, v, levels = inputs(queries, keys, n, dim, dtype)
    out, lse = attend(monkeypatch, q, k, v, levels, n, Tiles(128, max(keys_of_tile, n), n, 4, 3))
    settings = dict(block_m=128, block_n=n)
    assert_as_good_as_eager(out, q, k, v, levels, **settings)
    assert (out[0, 0] == 0).all()
    torch.testing.assert_close(lse, oracle(q, k, v, levels, **settings)[1].float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(t // SLOTS & 1) ^ 1)", "(t // SLOTS & 1))"),
        ("mbarrier.wait(read.index(slot), (t // SLOTS & 1) ^ 1)", "pass"),
        ("mbarrier.wait(filled.index(slot), t // SLOTS & 1)", "mbarrier.wait(filled.index(slot), t // SLOTS & 1 ^ 1)"),
        ("mbarrier.wait(filled.index(slot), t // SLOTS & 1)", "pass"),
        ("mbarrier.arrive(read.index(slot), count=1)", "pass"),
        ("mbarrier.init(read.index(slot), count=2)", "mbarrier.init(read.index(slot), count=1)"),
        ("mbarrier.arrive(turns.index(1 - half), count=1)\n\n", "pass\n\n"),
        ("expect(bar, 4", "expect(bar, 2"),
        ("(slot * PARTS + part) * BOXES + box", "(slot * BOXES + box) * PARTS + part"),
        ("tokens % BLOCK_N >> shift", "BLOCK_N >> shift"),
    ],
)
def test_what_stands_in_finds_mistakes(monkeypatch, tmp_path, right, wrong):
    q, k, v, levels = inputs(40, 600)
    module = stand_in_gluon.changed(forward_tma, tmp_path, right, wrong)
    with pytest.raises((stand_in_gluon.DeadlockError, AssertionError)):
        out, _ = attend(monkeypatch, q, k, v, levels, 64, Tiles(128, 64, 64, 4, 3), module)
        assert_as_good_as_eager(out, q, k, v, levels, block_m=128, block_n=64)


def test_all_else_is_left_to_the_default_kernel():
    q, k, v, _ = inputs(128, 200, dim=64)

    def suits(k=k, shifts=4, key_step=None, spread=None, m=128, n=64, scale=1.0, **masks):
        operands = Operands(q, k, v, k, v, key_step, spread, None, None)
        return forward.suits_tma(operands, shifts, Blocks.of(q, k, m, n, **masks), scale)

    assert suits() and suits(n=128) and suits(n=32, shifts=3)
    assert not suits(is_causal=True)
    assert not suits(key_mask=torch.ones(2, 200, dtype=torch.bool))
    assert not suits(key_step=torch.ones(1))
    assert not suits(spread=torch.ones(1))
    assert not suits(shifts=5)
    assert not suits(scale=-1.0)
    assert not suits(m=64)
    assert not suits(n=32)
    assert not suits(n=256)
    assert not suits(k=k.float())
    assert not suits(k=k[..., :32])
    assert not suits(k=torch.zeros(2, 1, 200, 68, dtype=k.dtype)[..., :64])
    assert not suits(k=torch.zeros(2, 1, 200, 72, dtype=k.dtype)[..., 4:68])


@pytest.mark.parametrize(
    "tiles", [Tiles(128, 64, 64, 4, 1), Tiles(128, 32, 32, 4, 3), Tiles(128, 64, 64, 8, 3)], ids=str
)
def test_tiles_that_it_is_not_made_for(monkeypatch, tiles):
    with pytest.raises(ValueError, match=r"expected tiles of attend_tma to have 128 queries"):
        attend(monkeypatch, *inputs(40, 64), 64, tiles)
