import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.ordering import TokenOrder


def random_order(shape, seed=0):
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return TokenOrder.from_permutation(noise.argsort(dim=-1))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_one_order_along_any_dimension(shape, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    order = TokenOrder.from_permutation(torch.tensor(data.draw(st.permutations(range(shape[dim])))))
    x = torch.randn(shape)
    moved = order.apply(x, dim=dim)
    assert torch.equal(order.restore(moved, dim=dim), x)
    assert torch.equal(moved.movedim(dim, 0), x.movedim(dim, 0)[order.permutation])


@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 3, 7), -1), ((2, 3, 7, 4), 2), ((2, 3, 4, 7), -1), ((2, 3, 5, 7, 4), 3)], ids=str
)
def test_per_head_orders_along_any_later_dimension(shape, dim):
    order = random_order((2, 3, 7))
    x = torch.randn(shape)
    moved = order.apply(x, dim=dim)
    assert torch.equal(order.restore(moved, dim=dim), x)
    tokens_first = moved[1, 2].movedim(dim % len(shape) - 2, 0)
    assert torch.equal(tokens_first, x[1, 2].movedim(dim % len(shape) - 2, 0)[order.permutation[1, 2]])


@pytest.mark.parametrize("shape", [(7,), (2, 3, 7)], ids=["one for all", "per head"])
def test_gradients_come_back_in_place(shape):
    order = random_order(shape)
    x = torch.randn(2, 3, 7, 4, requires_grad=True)
    weight = torch.randn(2, 3, 7, 4)
    (order.apply(x) * weight).sum().backward()
    assert torch.equal(x.grad, order.restore(weight))


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3)], ids=["one for all", "per head"])
def test_prefix_keeps_its_place(shape):
    order = random_order(shape)
    longer = order.with_prefix(2)
    x = torch.arange(10.0).view(1, 2, 5, 1)
    assert torch.equal(longer.apply(x)[:, :, :2], x[:, :, :2])
    assert torch.equal(longer.apply(x)[:, :, 2:], order.apply(x[:, :, 2:]))
    assert torch.equal(longer.restore(longer.apply(x)), x)
    assert order.with_prefix(0) is order


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3)], ids=["one for all", "per head"])
def test_what_the_order_does_not_fit(shape):
    order = random_order(shape)
    for move in (order.apply, order.restore):
        with pytest.raises(ValueError, match="x: expected 3 tokens along dimension 2, got 4"):
            move(torch.zeros(1, 2, 4, 5))
