import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from psa_triton import PSAConfig
from psa_triton.attention import sparse_attention
from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.inspection.inspect import inspect_attention
from psa_triton.tools.inspection.numbers import level_shares, levels_in_use

GRID = (3, 5, 7)
ALL = 100
"""More query blocks than there are."""
PYRAMID = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 4: (0.3, 0.6), 0: (0.6, 1)})


def make_inputs(prefix=0, heads=4, key_heads=2, causal=False):
    generator = torch.Generator().manual_seed(1)
    tokens = 105 + prefix
    q = torch.randn(1, heads, tokens, 16, generator=generator) * 2
    k, v = (torch.randn(1, key_heads, tokens, 16, generator=generator) for _ in "kv")
    return AttentionInputs(q=q, k=k, v=v, grid=None if causal else GRID, prefix_tokens=prefix, is_causal=causal)


def dense(inputs):
    return scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, enable_gqa=True, is_causal=inputs.is_causal)


@pytest.mark.parametrize(
    ("inputs", "config"),
    [
        pytest.param(make_inputs(), PYRAMID, id="gilbert"),
        pytest.param(make_inputs(prefix=13), PYRAMID.replace(rearrange_method="STA"), id="tiles-prefix"),
        pytest.param(make_inputs(), PYRAMID.replace(rearrange_method="SemanticAware"), id="clusters"),
        pytest.param(make_inputs(), PYRAMID.replace(mask_mode="budget", budget=0.4), id="budget"),
        pytest.param(make_inputs(causal=True), PYRAMID.replace(use_rearrange=False), id="causal"),
    ],
)
def test_error_and_levels_are_those_of_psa_attention(inputs, config):
    found = inspect_attention(inputs, config, query_blocks=ALL)
    marks = {"grid": inputs.grid, "prefix_tokens": inputs.prefix_tokens, "is_causal": inputs.is_causal}
    out, levels = sparse_attention(inputs.q, inputs.k, inputs.v, config, **marks)
    exact = dense(inputs)
    errors = ((out - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1)))[0]
    assert [head.error for head in found.heads] == pytest.approx(errors.tolist(), rel=1e-3)
    for head in found.heads:
        assert torch.equal(head.levels, levels[0, head.head])
        torch.testing.assert_close(head.mass.sum(-1), torch.ones(len(found.sampled)))
        assert head.error > 0


@pytest.mark.parametrize("method", ["Gilbert", "SemanticAware"])
def test_mass_and_places_are_of_the_same_tokens(method):
    """Mass of each key block, added up token by token from the attention matrix in the tokens' own order."""
    inputs = make_inputs()
    found = inspect_attention(inputs, PYRAMID.replace(rearrange_method=method), heads=[3], query_blocks=2)
    (head,) = found.heads
    weights = (inputs.q[0, 3] @ inputs.k[0, 1].T / 4).softmax(-1)
    assert found.sampled == (1, 3)
    for place, block in enumerate(found.sampled):
        queries = head.query_places[32 * block : 32 * (block + 1)]
        expected = [float(weights[queries][:, keys].sum(-1).mean()) for keys in head.key_places.split(32)]
        assert head.mass[place].tolist() == pytest.approx(expected, rel=1e-4)


def test_heads_alone_are_what_they_are_among_all():
    inputs = make_inputs()
    every = inspect_attention(inputs, PYRAMID.replace(mask_mode="budget", budget=0.4, budget_scope="layer"))
    (one,) = inspect_attention(
        inputs, PYRAMID.replace(mask_mode="budget", budget=0.4, budget_scope="layer"), heads=[2]
    ).heads
    same = every.heads[2]
    assert one.head == 2 and torch.equal(one.levels, same.levels) and torch.equal(one.importance, same.importance)
    assert one.error == pytest.approx(same.error)


def test_levels_that_were_read_are_taken():
    inputs = make_inputs()
    levels = torch.ones(1, 4, 4, 4, dtype=torch.int8)
    for head in inspect_attention(inputs, PYRAMID, levels=levels).heads:
        assert head.density == 1
        assert head.error < 1e-5


def test_without_values_or_samples_there_is_no_error():
    inputs = make_inputs()
    keys_alone = AttentionInputs(q=inputs.q, k=inputs.k, grid=GRID)
    (head, *_) = inspect_attention(keys_alone, PYRAMID).heads
    assert head.error is None and head.mass is not None
    found = inspect_attention(inputs, PYRAMID, query_blocks=0)
    assert found.sampled == ()
    assert found.heads[0].error is None and found.heads[0].mass is None
    shares = level_shares(found, found.heads[0], levels_in_use(found.heads))
    assert all(share.mass is None and share.best_so_far is None for share in shares)


def hand_made():
    """Two query blocks, four key blocks; of the second query block mass is known."""
    inputs = AttentionInputs(q=torch.randn(1, 1, 64, 8), k=torch.randn(1, 1, 128, 8))
    levels = torch.tensor([[[[1, 0, 2, 0], [0, 1, 8, 2]]]], dtype=torch.int8)
    found = inspect_attention(inputs, PYRAMID.replace(use_rearrange=False), levels=levels, query_blocks=1)
    assert found.sampled == (1,)
    (head,) = found.heads
    head.importance.copy_(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.5, 0.1, 0.3]]))
    head.mass.copy_(torch.tensor([[0.4, 0.3, 0.1, 0.2]]))
    return found


def test_shares_by_hand():
    found = hand_made()
    (head,) = found.heads
    assert levels_in_use([head]) == (1, 2, 4, 8, 0)
    one, two, four, eight, skipped = level_shares(found, head, levels_in_use([head]))
    assert [share.pairs for share in (one, two, four, eight, skipped)] == [0.25, 0.25, 0, 0.125, 0.375]
    assert [share.importance for share in (one, two, four, eight, skipped)] == pytest.approx([0.6, 0.2, 0, 0.05, 0.15])
    assert [share.mass for share in (one, two, four, eight, skipped)] == pytest.approx([0.3, 0.2, 0, 0.1, 0.4])
    assert [share.mass_so_far for share in (one, two, four, eight)] == pytest.approx([0.3, 0.5, 0.5, 0.6])
    assert [share.best_so_far for share in (one, two, four, eight)] == pytest.approx([0.4, 0.7, 0.7, 0.9])
    assert skipped.mass_so_far == pytest.approx(1) == skipped.best_so_far


def test_pairs_behind_a_causal_mask_do_not_count():
    inputs = make_inputs(causal=True)
    everything = PYRAMID.replace(use_rearrange=False, mask_ratios={1: (0, 1)})
    found = inspect_attention(inputs, everything)
    (full, *rest) = level_shares(found, found.heads[0], (1, 2, 4, 8, 0))
    assert [full.pairs, full.mass] == pytest.approx([1, 1])
    assert [share.pairs for share in rest] == [0] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"grid": (3, 5, 6)}, r"105, the tokens of q, got 3 \* 5 \* 6 \+ 0 = 90", id="grid"),
        pytest.param({"grid": (0, 5, 7)}, "three positive ints", id="empty-grid"),
        pytest.param({"prefix_tokens": 106}, "prefix_tokens: expected 0 to 105", id="prefix"),
        pytest.param({"k": torch.full((1, 2, 105, 16), torch.nan)}, "k: expected finite", id="nan"),
        pytest.param(
            {"k": torch.zeros(1, 2, 99, 16), "v": None, "grid": None, "is_causal": True}, "105 and 99", id="causal"
        ),
    ],
)
def test_inputs_that_do_not_fit(changes, message):
    inputs = make_inputs()
    with pytest.raises(ValueError, match=message):
        AttentionInputs(**{"q": inputs.q, "k": inputs.k, "v": inputs.v, "grid": GRID, **changes})


def test_calls_that_do_not_fit():
    inputs = make_inputs()
    with pytest.raises(ValueError, match="heads: expected indexes from 0 to 3, got 4, 9"):
        inspect_attention(inputs, PYRAMID, heads=[0, 4, 9])
    two = AttentionInputs(q=inputs.q.expand(2, -1, -1, -1), k=inputs.k.expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="batch of one, got 2"):
        inspect_attention(two, PYRAMID)
    assert inspect_attention(two.batch_entry(1), PYRAMID, heads=[0]).heads[0].mass is not None
    causal = AttentionInputs(q=inputs.q, k=inputs.k, grid=GRID, is_causal=True)
    with pytest.raises(ValueError, match="use_rearrange: false"):
        inspect_attention(causal, PYRAMID)
