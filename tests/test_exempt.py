"""Exempt tokens anywhere, and more keys than queries: what is read in full, in every order and implementation."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F

from psa_triton import PSAConfig, psa_attention
from psa_triton.attention import sparse_attention
from psa_triton.exempt import Side, as_ranges, count, find_sides
from psa_triton.ordering import token_orders

GRID = (3, 5, 7)
VISUAL = 105
SPARSE = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 4: (0.3, 0.5), 0: (0.5, 1)})
# Further keys, tokens aside, and what is said of them.
CALLS = {
    "both": (0, 17, {"exempt": [(3, 13), (110, 117)]}),
    "overlapping a prefix": (0, 12, {"prefix_tokens": 9, "exempt": [(4, 12)]}),
    "positions": (0, 5, {"exempt": torch.tensor([0, 101, 7, 50, 51])}),
    "keys": (0, 9, {"exempt_keys": [(40, 49)]}),
    "queries": (0, 9, {"exempt_queries": [(40, 49)]}),
    "keys and others as queries": (0, 20, {"exempt_keys": [(0, 12)], "exempt_queries": [(100, 108)]}),
    "more keys": (14, 0, {}),
    "more keys, and a prefix": (14, 6, {"prefix_tokens": 6}),
    "more keys, and exempt ones at the end": (14, 6, {"exempt_queries": [(105, 111)], "exempt_keys": [(119, 125)]}),
}
calls = pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))


def inputs(more, aside, *, heads=2):
    generator = torch.Generator().manual_seed(0)
    sizes = (VISUAL + aside, VISUAL + aside + more, VISUAL + aside + more)
    return [torch.randn(2, heads, size, 16, generator=generator) for size in sizes]


@calls
@pytest.mark.parametrize("method", ["Gilbert", "STA", "SemanticAware", "Hybrid", None])
def test_what_is_exempt_is_read_in_full(call, method):
    more, aside, said = call
    q, k, v = inputs(more, aside)
    config = SPARSE.replace(use_rearrange=False) if method is None else SPARSE.replace(rearrange_method=method)
    out, levels = sparse_attention(q, k, v, config, grid=GRID, **said)
    grid, queries, keys = find_sides(q.shape[2], k.shape[2], GRID, **said)
    assert (count(queries.aside), count(keys.aside)) == (aside, aside + more)
    exact = list(chain.from_iterable(range(*pair) for pair in queries.exempt))
    dense = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out[:, :, exact], dense[:, :, exact])
    assert len(exact) == q.shape[2] or not torch.allclose(out, dense, rtol=1e-2)
    # Every key block that an exempt key may be in, and no more than what shares and exempt tokens ask for.
    orders = token_orders(q, k, config, grid, queries, keys)
    for side, of_blocks in ((queries, levels), (keys, levels.mT)):
        ranges = side.exempt if orders is None else side.front
        full = {token // 32 for pair in ranges for token in range(*pair)}
        assert (of_blocks[:, :, sorted(full)] == 1).all()
        assert (of_blocks[:, :, [i for i in range(of_blocks.shape[2]) if i not in full]] != 1).any()
    # As psa_attention does, whatever the order of tokens.
    everything = psa_attention(q, k, v, config.replace(mask_ratios={1: (0, 1)}), grid=GRID, **said)
    torch.testing.assert_close(everything, dense)


@pytest.mark.parametrize(
    ("name", "impl"),
    [*((name, impl) for name in CALLS for impl in ("cpu", "torch")), ("both", "triton"), ("more keys", "triton")],
)
def test_implementations_agree(name, impl):
    """Output and gradients are the reference's."""
    more, aside, said = CALLS[name]
    found = []
    for way in ("reference", impl):
        tensors = [x[:1].requires_grad_() for x in inputs(more, aside, heads=1)]
        # Shares of the number of blocks: no near tie of importance is decided by rounding.
        out = psa_attention(*tensors, SPARSE.replace(mask_mode="topk"), grid=GRID, impl=way, **said)
        found.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_under_a_causal_mask_they_stay_in_place():
    q, k, v = inputs(0, 0)
    config = SPARSE.replace(use_rearrange=False)
    out, levels = sparse_attention(q, k, v, config, exempt_keys=[(33, 40)], exempt_queries=[(100, 105)], is_causal=True)
    assert (levels[:, :, 1:, 1] == 1).all() and (levels[:, :, 0, 1] == 0).all() and (levels[:, :, 3] == 1).all()
    dense = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out[:, :, 96:], dense[:, :, 96:])


def test_through_a_graph_and_with_a_mask():
    q, k, v = inputs(8, 12)
    key_mask = torch.ones(2, k.shape[2], dtype=torch.bool)
    key_mask[1, 5:30] = False
    call = dict(grid=GRID, exempt=[(100, 112)], key_mask=key_mask)
    expected = psa_attention(q, k, v, SPARSE, **call)
    compiled = torch.compile(psa_attention, fullgraph=True, backend="aot_eager")
    # A graph logs nothing.
    torch.testing.assert_close(compiled(q, k, v, SPARSE.replace(verbose=True), **call), expected)
    hidden = k.masked_fill(~key_mask[:, None, :, None], torch.nan)
    torch.testing.assert_close(psa_attention(q, hidden, v, SPARSE, **call), expected)


@pytest.mark.parametrize(
    "exempt",
    [lambda frames: [(1, 12 + frames)], lambda frames: [(62, 72 - frames), (50, 52 + frames)]],
    ids=["at the front", "in the middle, unsorted"],
)
def test_through_graphs_whose_sizes_may_change(exempt):
    """From the second size on, torch traces with sizes that have no value."""
    compiled = torch.compile(psa_attention, fullgraph=True, backend="aot_eager")
    for frames in (2, 3):
        generator = torch.Generator().manual_seed(frames)
        q, k, v = (torch.randn(1, 2, 12 + frames * 65, 16, generator=generator) for _ in range(3))
        call = dict(grid=(frames, 8, 8), prefix_tokens=frames, exempt=exempt(frames))
        torch.testing.assert_close(compiled(q, k, v, SPARSE, **call), psa_attention(q, k, v, SPARSE, **call))


def test_pieces_by_hand():
    assert as_ranges("exempt", [(5, 7), (1, 3), (3, 4), (9, 9), (6, 8)], 9) == ((1, 4), (5, 8))
    assert Side(10, exempt=((2, 4), (8, 9)), aside=((1, 4), (8, 9))).pieces() == (
        *((2, 4), (8, 9)),
        (1, 2),
        *((0, 1), (4, 8), (9, 10)),
    )


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"exempt": (0, 4)}, TypeError, r"exempt: expected ranges \[\(start, stop\), ...\] or positions"),
        ({"exempt": [0.5]}, TypeError, "exempt: expected ranges"),
        ({"exempt": [(0.5, 1)]}, TypeError, "exempt: expected ranges"),
        ({"exempt_keys": torch.ones(105).bool()}, TypeError, "exempt_keys: .* a mask of tokens has its positions in"),
        ({"exempt": [(0, 106)]}, ValueError, r"exempt: expected 0 <= start <= stop <= 105, the tokens, got \(0, 106\)"),
        ({"exempt_queries": torch.tensor([-1])}, ValueError, r"exempt_queries: expected 0 <= .* got \(-1, 0\)"),
        ({"exempt": [(0, 5)], "grid": GRID}, ValueError, r"exempt tokens = 105, the tokens of q, got .* \+ 5 = 110"),
    ],
    ids=str,
)
def test_mistakes_are_named(said, error, message):
    with pytest.raises(error, match=message):
        psa_attention(*inputs(0, 0), SPARSE, **said)
