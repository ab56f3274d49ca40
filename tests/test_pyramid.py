import math

import pytest
import torch

from psa_triton.pyramid import pyramid_layout, write_pyramid, write_spread


def build(x, block_n, coarsest=8, dtype=torch.float64):
    layout = pyramid_layout(len(x), block_n, coarsest)
    out = torch.full((layout.rows, x.shape[1]), float("nan"), dtype=dtype)
    write_pyramid(x, layout, out)
    return layout, out


def test_a_pyramid_computed_by_hand():
    # 11 tokens in blocks of 8: the second block holds 3.
    x = torch.arange(11, dtype=torch.float64)[:, None]
    layout, out = build(x, 8)
    assert (layout.blocks, layout.unit, layout.rows) == (2, 1, 16 + 8 + 4 + 2)
    level_2 = out[layout.first_row(2) : layout.first_row(4), 0]
    level_4 = out[layout.first_row(4) : layout.first_row(8), 0]
    level_8 = out[layout.first_row(8) :, 0]
    assert level_2[:6].tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.0]
    assert level_4[:3].tolist() == [1.5, 5.5, 9.0]
    assert level_8.tolist() == [3.5, 9.0]


def test_long_sequences_are_pooled_in_pieces():
    x = torch.randn(20_000, 8, dtype=torch.float64)
    layout, out = build(x, 64)
    level_8 = out[layout.first_row(8) :][: 20_000 // 8]
    torch.testing.assert_close(level_8, x.unflatten(0, (-1, 8)).mean(1))


def test_means_of_bfloat16_are_formed_in_float32():
    # Summed in bfloat16, 256 + 1 stays 256 and the mean of the eight would be 32.
    x = torch.tensor([256.0, 1, 1, 1, 1, 1, 1, 1], dtype=torch.bfloat16)[:, None]
    layout, out = build(x, 8, dtype=torch.bfloat16)
    assert out[layout.first_row(8), 0] == torch.tensor(263 / 8).bfloat16()


def spread(keys, block_n, coarsest=8):
    layout = pyramid_layout(len(keys), block_n, coarsest)
    out = torch.full((layout.rows,), math.nan, dtype=torch.promote_types(keys.dtype, torch.float32))
    write_spread(keys, layout, out)
    return layout, out


class TestSpread:
    def test_computed_by_hand(self):
        # 11 tokens of one dimension: pairs 1 apart have variance 1/4, fours 5/4, eights 21/4; the last three 2/3.
        layout, out = spread(torch.arange(11, dtype=torch.float64)[:, None], 8)
        assert out[: layout.first_row(2)].tolist() == [0.0] * 16
        assert out[layout.first_row(2) : layout.first_row(4)].tolist() == [0.25] * 5 + [0.0] * 3
        torch.testing.assert_close(
            out[layout.first_row(4) :], torch.tensor([5 / 4, 5 / 4, 2 / 3, 0, 21 / 4, 2 / 3], dtype=torch.float64)
        )

    def test_of_keys_far_from_the_origin_is_that_of_the_same_keys_at_it(self):
        keys = torch.randint(-8, 9, (100, 16)).float()
        assert torch.equal(spread(keys + 4096.0, 32)[1], spread(keys, 32)[1])
        assert (spread(torch.full((100, 16), 1e4), 32)[1] == 0.0).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch."))
    @pytest.mark.parametrize(
        ("tokens", "coarsest"), [(64, 8), (75, 8), (130, 32), (3, 2), (67, 4)], ids=lambda x: str(x)
    )
    def test_on_a_gpu_is_the_same(self, tokens, coarsest, dtype):
        kernels = pytest.importorskip("psa_triton.pyramid.pooling_triton")
        keys = torch.randn(2, 3, 24, tokens).to(dtype).mT
        means, table = kernels.pool(keys, 32, coarsest, None, with_spread=True)
        assert torch.equal(means, kernels.pool(keys, 32, coarsest, None)[0])
        for b, h in [(0, 0), (1, 2)]:
            layout, expected = spread(keys[b, h], 32, max(coarsest, 8))
            pooled = expected[layout.first_row(2) : layout.first_row(2 * coarsest)]
            torch.testing.assert_close(table[b, h], pooled, rtol=1e-5, atol=0.0)
