import torch

from psa_triton.pyramid import pyramid_layout, write_pyramid


def build(x, block_n, coarsest=8, dtype=torch.float64):
    layout = pyramid_layout(len(x), block_n, coarsest)
    out = torch.full((layout.rows, x.shape[1]), float("nan"), dtype=dtype)
    write_pyramid(x, layout, out)
    return layout, out


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
