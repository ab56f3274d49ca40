import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psa_triton.ordering import grid_order, semantic, semantic_order


def blobs(centres, label, noise=0.1, seed=0):
    """Tokens around the centre that their label names: [B, H, N, D] of [K, D] and [B, H, N]."""
    generator = torch.Generator().manual_seed(seed)
    return centres[label] + noise * torch.randn(*label.shape, centres.shape[1], generator=generator)


def pooling_error(x, group=8):
    """Mean squared distance of tokens from the mean of their group of neighbours."""
    return x.unflatten(2, (-1, group)).var(dim=3, correction=0).sum(-1).mean().item()


def assert_permutation(order):
    places = torch.arange(order.tokens).expand_as(order.permutation)
    assert torch.equal(order.permutation.gather(-1, order.inverse), places)
    assert torch.equal(order.inverse.gather(-1, order.permutation), places)


def test_clusters_stand_together_and_along_a_line():
    # Four blobs on a line, 512 tokens: four clusters, whose seeds are the tokens 64, 192, 320, 448.
    centres = torch.tensor([[0.0, 0.0], [10.0, 20.0], [20.0, 40.0], [30.0, 60.0]])
    label = torch.randint(4, (1, 1, 512), generator=torch.Generator().manual_seed(0))
    label[..., [64, 192, 320, 448]] = torch.tensor([2, 0, 3, 1])
    order = semantic_order(blobs(centres, label), method="SemanticAware")
    runs = order.apply(label, dim=-1).flatten().unique_consecutive().tolist()
    assert runs in ([0, 1, 2, 3], [3, 2, 1, 0])
    # Inside a cluster the order is that of the input.
    for run in range(4):
        inside = order.permutation[label.gather(-1, order.permutation) == run]
        assert torch.equal(inside, inside.sort().values)


@pytest.mark.parametrize("method", ["SemanticAware", "Hybrid"])
def test_heads_have_orders_of_their_own_that_pool_better(method):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(24, (2, 3, 4096), generator=generator)
    x = blobs(3 * torch.randn(24, 32, generator=generator), label, noise=0.3)
    order = semantic_order(x, method=method, grid=(4, 32, 32))
    assert_permutation(order)
    assert order.permutation.shape == (2, 3, 4096)
    assert not torch.equal(order.permutation[0, 0], order.permutation[1, 2])
    assert pooling_error(order.apply(x)) < 0.2 * pooling_error(x)


def test_a_head_does_not_depend_on_others_of_its_item_or_another():
    x = (
        torch.randn(2, 3, 300, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e3, 1])[:, None, None, None]
    )
    alone = semantic_order(x[1:, 2:], method="SemanticAware").permutation
    assert torch.equal(semantic_order(x, method="SemanticAware").permutation[1:, 2:], alone)


def test_hybrid_follows_the_curve_inside_a_cluster():
    # 128 tokens are one cluster, so only the curve is left.
    x = torch.randn(1, 2, 128, 8)
    permutation = semantic_order(x, method="Hybrid", grid=(2, 8, 8)).permutation
    assert torch.equal(permutation, grid_order("Gilbert", (2, 8, 8)).permutation.expand(1, 2, 128))
    # Two clusters, even and odd tokens: the curve's even tokens, then its odd ones, or the other way round.
    label = torch.arange(256) % 2
    label[[64, 192]] = torch.tensor([0, 1])
    x = blobs(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), label.view(1, 1, 256))
    permutation = semantic_order(x, method="Hybrid", grid=(1, 16, 16)).permutation.flatten()
    curve = grid_order("Gilbert", (1, 16, 16)).permutation
    halves = [curve[label[curve] == 0], curve[label[curve] == 1]]
    assert permutation.tolist() in (torch.cat(halves).tolist(), torch.cat(halves[::-1]).tolist())


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 20),
    st.sampled_from(["SemanticAware", "Hybrid"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_any_grid_and_prefix(grid, prefix, method, dtype):
    tokens = prefix + grid[0] * grid[1] * grid[2]
    x = torch.randn(1, 2, tokens, 8, dtype=dtype)
    order = semantic_order(x, method=method, grid=grid, prefix_tokens=prefix)
    assert_permutation(order)
    assert torch.equal(order.permutation[..., :prefix], torch.arange(prefix).expand(1, 2, prefix))
    assert torch.equal(order.restore(order.apply(x)), x)


@pytest.mark.parametrize("tokens", [0, 1, 2, 129])
def test_few_tokens_behind_a_prefix(tokens):
    order = semantic_order(torch.randn(1, 2, tokens + 3, 8), method="SemanticAware", prefix_tokens=3)
    assert_permutation(order)
    assert order.permutation.shape == (1, 2, tokens + 3)


def test_same_input_same_order_whatever_the_random_state():
    x = torch.randn(1, 2, 1000, 16)
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        orders.append(semantic_order(x, method="SemanticAware").permutation)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*orders)


@pytest.mark.parametrize("kind", ["noise", "smooth", "still"])
@pytest.mark.parametrize("method", ["SemanticAware", "Hybrid"])
def test_rounding_of_the_input_changes_nothing(method, kind):
    changed = 0
    for seed in range(20):
        for grid in ((2, 8, 10), (4, 8, 8), (4, 10, 16)):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(1, 2, grid[0] * grid[1] * grid[2], 16, generator=generator)
            if kind == "smooth":
                x = x + x.cumsum(2) / 4
            if kind == "still":  # all frames are equal
                x = x[:, :, : grid[1] * grid[2]].repeat(1, 1, grid[0], 1)
            near = x * (1 + 1e-7 * torch.randn(x.shape, generator=generator))
            first, second = (semantic_order(y, method=method, grid=grid).permutation for y in (x, near))
            changed += not torch.equal(first, second)
    # A token may stand halfway between two centroids, but hardly any does.
    assert changed <= 1


def test_two_clusters_keep_the_order_of_the_sequence():
    # They are equally far from their mean, whichever way one looks: what stands first stays first.
    centres = torch.tensor([[3.0, -1.0], [-2.0, 4.0]])
    for first in (0, 1):
        label = torch.full((1, 1, 200), first)
        label[..., 100:] = 1 - first
        order = semantic_order(blobs(centres, label), method="SemanticAware")
        assert torch.equal(order.permutation.flatten(), torch.arange(200))


def test_of_equal_tokens_the_order_is_that_of_the_sequence():
    x = torch.ones(1, 1, 700, 8) * torch.tensor([1.0, 1e-3, 7.0, 0.1, 3.3, 0.7, 1e3, 0.0])
    noise = 1 + 1e-7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for y in (x, x * noise):
        assert torch.equal(semantic_order(y, method="SemanticAware").permutation.flatten(), torch.arange(700))


def test_chunks_change_nothing(monkeypatch):
    x = torch.randn(1, 2, 1000, 16, generator=torch.Generator().manual_seed(0))
    whole = semantic_order(x, method="SemanticAware").permutation
    monkeypatch.setattr(semantic, "_DISTANCES", 2 * 8 * 300)
    assert torch.equal(semantic_order(x, method="SemanticAware").permutation, whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38, 0.0], ids=str)
@pytest.mark.parametrize("where", [slice(None), slice(0, None, 3), slice(64, 65)], ids=["all", "every third", "a seed"])
def test_extreme_values_still_give_permutations(value, where):
    clean = torch.randn(1, 2, 600, 8, generator=torch.Generator().manual_seed(0))
    x = clean.clone()
    x[0, 1, where] = value
    order = semantic_order(x, method="SemanticAware")
    assert_permutation(order)
    expected = semantic_order(clean, method="SemanticAware").permutation
    assert torch.equal(order.permutation[0, 0], expected[0, 0])
