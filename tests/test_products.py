"""Products on a CPU: the fast ones give the numbers of the plain ones."""

from __future__ import annotations

import pytest
import torch

from psa_triton import products
from psa_triton.products import linear, logits, operand, product

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(params=[False, True], ids=["as torch does", "by linear"])
def wide_vectors(request, monkeypatch):
    monkeypatch.setattr(products, "has_wide_vectors", lambda: request.param)


def operands(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_stacked_products_equal_single_ones(dtype: torch.dtype, batch: int, wide_vectors: None) -> None:
    a, b, bias = operands(dtype, (batch, 10, 16), (batch, 40, 16), (batch, 40))
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-5
    found = product(a, b[:, :24].mT)
    assert found.shape == (batch, 10, 24)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), a.double() @ b[:, :24].double().mT, atol=tolerance, rtol=tolerance)
    found = logits(a, b, bias, 0.25)
    assert found.dtype == dtype
    expected = 0.25 * a.double() @ b.double().mT + bias.double()[:, None]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def test_products_in_float32_equal_torchs() -> None:
    a, b, bias = operands(torch.float32, (10, 16), (40, 16), (40,))
    torch.testing.assert_close(linear(a, b, bias), torch.nn.functional.linear(a, b, bias))


def test_narrow_types_are_widened_where_their_products_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (False, True):
        monkeypatch.setattr(products, "multiplies", lambda dtype, fast=fast: fast)
        found = operand(torch.zeros(2, dtype=torch.bfloat16)).dtype
        assert found == (torch.bfloat16 if fast else torch.float32)
