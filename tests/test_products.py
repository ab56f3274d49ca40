"""Products on a CPU: the fast ones give the numbers of the plain ones."""

from __future__ import annotations

import pytest
import torch

from psa_triton.products import batched, linear, matmul

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def operands(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cut", [40, 24], ids=["whole", "first rows of each"])
def test_batched_products_equal_single_ones(dtype: torch.dtype, batch: int, cut: int) -> None:
    a, b = operands(dtype, (batch, 10, 16), (batch, 40, 16))
    b = b[:, :cut]
    found = batched(a, b)
    assert found.shape == (batch, 10, cut)
    assert found.dtype == dtype
    expected = torch.stack([x.double() @ y.double().T for x, y in zip(a, b, strict=True)])
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def test_products_in_float32_equal_torchs() -> None:
    a, b, bias = operands(torch.float32, (10, 16), (40, 16), (40,))
    torch.testing.assert_close(linear(a, b, bias), torch.nn.functional.linear(a, b, bias))
    torch.testing.assert_close(matmul(a, b.T), a @ b.T)
