"""What `scaled_dot_product_attention` takes, and what torch does to it: empty tensors, `vmap`, gradients, `export`."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from psa_triton import PSAAttention, PSAConfig, block_importance, density, psa_attention, pyramid_attention

IMPLS = ["cpu", "reference", "triton"]
SMALL = PSAConfig(block_m=32, block_n=32, use_rearrange=False)
CONFIGS = {
    "topk": SMALL,
    "budget": SMALL.replace(mask_mode="budget", budget=0.4),
    "similar": SMALL.replace(use_sim_mask=True, mask_mode="thresholdbound"),
    "k-means": SMALL.replace(use_rearrange=True, rearrange_method="SemanticAware"),
    "curve": SMALL.replace(use_rearrange=True),
}
EMPTY = {
    "no items": (0, 4, 2, 5, 7),
    "no heads": (1, 0, 0, 5, 7),
    "no query heads": (1, 0, 2, 5, 7),
    "no queries": (1, 4, 2, 0, 7),
    "no keys": (1, 4, 2, 5, 0),
    "no tokens": (2, 4, 2, 0, 0),
}


def empty(shape):
    batch, heads, key_heads, queries, keys = shape
    shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return [torch.randn(batch, h, n, 16, requires_grad=True) for h, n in shapes]


class TestEmpty:
    @pytest.mark.parametrize("impl", IMPLS)
    @pytest.mark.parametrize("shape", list(EMPTY.values()), ids=list(EMPTY))
    @pytest.mark.parametrize("name", CONFIGS)
    def test_results_and_gradients_are_those_of_sdpa(self, name, shape, impl):
        q, k, v = empty(shape)
        out = psa_attention(q, k, v, CONFIGS[name], impl=impl)
        assert out.shape == q.shape and not out.any()
        if shape[1] > 0:
            torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
        for x, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
            torch.testing.assert_close(grad, torch.zeros_like(x))

    @pytest.mark.parametrize("impl", IMPLS)
    @pytest.mark.parametrize("shape", list(EMPTY.values()), ids=list(EMPTY))
    def test_stages(self, shape, impl):
        q, k, v = empty(shape)
        blocks = (shape[0], shape[1], -(-shape[3] // 32), -(-shape[4] // 32))
        importance = block_importance(q, k, block_m=32, block_n=32, impl=impl)
        assert importance.shape == blocks
        levels = torch.ones(blocks, dtype=torch.int8)
        out, lse = pyramid_attention(q, k, v, levels, block_m=32, block_n=32, impl=impl, return_lse=True)
        assert out.shape == q.shape and not out.any()
        assert lse.shape == q.shape[:3] and (lse == -torch.inf).all()
        assert density(levels[..., :0]).tolist() == torch.zeros(shape[:2]).tolist()

    def test_a_causal_mask_and_a_prefix(self):
        q, k, v = empty(EMPTY["no queries"])
        assert psa_attention(q, k, v, SMALL, is_causal=True).shape == q.shape
        with pytest.raises(ValueError, match="prefix_tokens: expected 0 to 0"):
            psa_attention(q, k, v, SMALL, prefix_tokens=1)


@pytest.fixture
def mapped():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, h, 90, 16, generator=generator) for h in (4, 2, 2)]


class TestTransforms:
    @pytest.mark.parametrize("impl", ["cpu", "reference"])
    @pytest.mark.parametrize("name", CONFIGS)
    def test_vmap_is_a_loop(self, name, impl, mapped):
        def attend(q, k, v):
            return psa_attention(q, k, v, CONFIGS[name], impl=impl, grid=(3, 5, 6))

        expected = torch.stack([attend(*x) for x in zip(*mapped, strict=True)])
        torch.testing.assert_close(torch.vmap(attend)(*mapped), expected)
        shared = torch.vmap(attend, in_dims=(2, None, None))(mapped[0].movedim(0, 2), mapped[1][0], mapped[2][0])
        torch.testing.assert_close(shared[0], expected[0])

    def test_gradients_by_torch_func(self, mapped):
        def loss(*qkv):
            return psa_attention(*qkv, SMALL).square().sum()

        inputs = [x.requires_grad_() for x in mapped]
        expected = torch.autograd.grad(sum(loss(*x) for x in zip(*inputs, strict=True)), inputs)
        inputs = [x.detach() for x in inputs]
        of_each = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*inputs)
        of_sum = torch.func.grad(lambda *x: torch.vmap(loss)(*x).sum(), argnums=(0, 1, 2))(*inputs)
        torch.testing.assert_close(of_each, expected)
        torch.testing.assert_close(of_sum, expected)

    def test_vmap_of_the_kernel_checks_levels(self, mapped):
        levels = torch.ones(3, 2, 4, 3, 3, dtype=torch.int8)

        def attend(*x):
            return pyramid_attention(*x, block_m=32, block_n=32)

        found = torch.vmap(attend)(*mapped, levels)
        dense = F.scaled_dot_product_attention(*(x.flatten(0, 1) for x in mapped), enable_gqa=True)
        torch.testing.assert_close(found.flatten(0, 1), dense, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match=r"levels: .* got also \[3\]"):
            torch.vmap(attend)(*mapped, levels * 3)

    def test_what_there_is_not_is_an_error(self, mapped):
        q, k, v = (x[0].requires_grad_() for x in mapped)
        first = torch.autograd.grad(psa_attention(q, k, v, SMALL).square().sum(), q, create_graph=True)[0]
        with pytest.raises(NotImplementedError, match="no second derivative; impl='reference'"):
            first.sum().backward()
        with pytest.raises(NotImplementedError, match="forward mode"):
            torch.func.jvp(lambda x: psa_attention(x, k, v, SMALL), (q.detach(),), (q.detach(),))

    @pytest.mark.parametrize("name", ["budget", "k-means"])
    def test_export_of_any_batch_and_length(self, name, mapped):
        attention = PSAAttention(CONFIGS[name])
        sizes = {0: torch.export.Dim("batch", min=1, max=16), 2: torch.export.Dim("tokens", min=65, max=4096)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own exporter
            dynamic = {name: sizes for name in "qkv"}
            program = torch.export.export(attention, tuple(x[0] for x in mapped), dynamic_shapes=dynamic)
        for inputs in ([x[0] for x in mapped], [x[0, :1, :, :77] for x in mapped]):
            torch.testing.assert_close(program.module()(*inputs), attention(*inputs))


Q = torch.randn(1, 4, 60, 16)


class TestArguments:
    def test_those_of_sdpa_change_nothing(self):
        expected = psa_attention(Q, Q, Q, SMALL)
        for attend in (psa_attention, lambda q, k, v, _, **same: PSAAttention(SMALL)(q, k, v, **same)):
            out = attend(Q, Q, Q, SMALL, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=True)
            assert torch.equal(out, expected)
        assert psa_attention(Q, Q[:, :2], Q[:, :2], SMALL).shape == Q.shape  # grouped heads need no leave

    @pytest.mark.parametrize("integer", [np.int64, np.int32, torch.tensor, np.uint8], ids=lambda x: x.__name__)
    def test_any_integer_counts(self, integer):
        config = SMALL.replace(use_rearrange=True)
        expected = psa_attention(Q, Q, Q, config, grid=(2, 4, 7), prefix_tokens=4)
        grid = [integer(x) for x in (2, 4, 7)]
        assert torch.equal(psa_attention(Q, Q, Q, config, grid=grid, prefix_tokens=integer(4)), expected)
        importance = block_importance(Q, Q, block_m=integer(32), block_n=integer(32))
        assert torch.equal(importance, block_importance(Q, Q, block_m=32, block_n=32))

    def test_a_scale_of_numpy(self):
        expected = psa_attention(Q, Q, Q, SMALL, scale=0.5)
        assert torch.equal(psa_attention(Q, Q, Q, SMALL, scale=np.float64(0.5)), expected)

    @pytest.mark.parametrize(
        "dtypes", [(torch.float32,) * 3, (torch.float32, torch.float32, torch.bfloat16), (torch.float64,) * 3], ids=str
    )
    def test_autocast_casts_alike(self, dtypes):
        q, k, v = (Q.to(dtype) for dtype in dtypes)
        with torch.autocast("cpu", torch.bfloat16):
            out = psa_attention(q, k, v, SMALL, attn_mask=torch.ones(60, dtype=torch.bool))
            assert out.dtype == F.scaled_dot_product_attention(q, k, v).dtype
        assert torch.equal(out, psa_attention(*(x.to(out.dtype) for x in (q, k, v)), SMALL))

    @pytest.mark.parametrize("impl", ["cpu", "torch", "reference"])
    def test_autocast_narrows_no_product_inside(self, impl):
        q = torch.randn(1, 2, 300, 16, generator=torch.Generator().manual_seed(0))
        levels = torch.ones(1, 2, 10, 10, dtype=torch.int8)

        def outputs():
            clustered = psa_attention(*3 * [q.bfloat16()], CONFIGS["k-means"], impl=impl)
            return clustered, pyramid_attention(q, q, q, levels, block_m=32, block_n=32, impl=impl)

        with torch.autocast("cpu", torch.bfloat16):
            found = outputs()
        assert all(map(torch.equal, found, outputs()))


def tokens_first(tokens, heads):
    return torch.randn(1, tokens, heads, 16)


MIXED_UP = {
    "grid": (dict(q=tokens_first(60, 4), k=tokens_first(60, 4), v=tokens_first(60, 4), grid=(3, 4, 5)), "transpose"),
    "long": (dict(q=tokens_first(4096, 12), k=tokens_first(4096, 12), v=tokens_first(4096, 12)), "look like"),
    "cross": (dict(q=tokens_first(300, 12), k=tokens_first(77, 12), v=tokens_first(77, 12)), "look like"),
    "grouped": (dict(q=tokens_first(300, 12), k=tokens_first(300, 2), v=tokens_first(300, 2)), "look like"),
}


@pytest.mark.parametrize(("arguments", "words"), list(MIXED_UP.values()), ids=list(MIXED_UP))
def test_heads_and_tokens_mixed_up_are_named(arguments, words):
    with pytest.raises(ValueError, match=rf"{words}.*transpose\(1, 2\)|transpose\(1, 2\)"):
        psa_attention(**arguments)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's, about prototypes
    JAGGED = torch.nested.nested_tensor([Q[0, 0], Q[0, 1]], layout=torch.jagged)
    QUANTISED = torch.quantize_per_tensor(Q, 0.1, 0, torch.qint8)
MALFORMED = {
    "numpy": (dict(k=np.zeros((1, 4, 60, 16))), TypeError, "k: expected a tensor, got ndarray"),
    "sparse": (dict(q=Q.to_sparse()), TypeError, "q: expected a dense tensor, got a sparse_coo"),
    "jagged": (dict(q=JAGGED), TypeError, "q: expected a dense tensor, got a nested"),
    "complex": (dict(q=Q.to(torch.complex64)), TypeError, "q: expected one of float32, bfloat16, float16, float64"),
    "quantised": (dict(q=QUANTISED), TypeError, "q: expected one of float32"),
    "dtypes": (dict(k=Q.double()), TypeError, "k: expected dtype and device of q, torch.float32 on cpu"),
    "devices": (dict(v=Q.to("meta")), TypeError, "v: expected dtype and device of q"),
    "rank 3": (dict(q=Q[0]), ValueError, "q: expected 4 dimensions [batch, heads, tokens, channels]"),
    "batch": (dict(k=Q.expand(2, -1, -1, -1)), ValueError, "k: expected batch 1 and head dimension 16 as in q"),
    "channels": (dict(k=Q[..., :8]), ValueError, "k: expected batch 1 and head dimension 16"),
    "no channels": (dict(q=Q[..., :0], k=Q[..., :0], v=Q[..., :0]), ValueError, "q: expected at least one channel"),
    "12 channels": (
        dict(q=Q[..., :12], k=Q[..., :12], v=Q[..., :12]),
        ValueError,
        "multiple of 8, got 12; pad q, k and v with torch.nn.functional.pad(x, (0, 4)), pass scale=12 ** -0.5",
    ),
    "heads": (dict(k=Q[:, :3], v=Q[:, :3]), ValueError, "q: expected a multiple of k's 3 heads, got 4"),
    "no key heads": (dict(k=Q[:, :0], v=Q[:, :0]), ValueError, "q: expected a multiple of k's 0 heads, got 4"),
    "values": (dict(v=Q[:, :, :59]), ValueError, "v: expected the shape of k"),
    "mask in the place of config": (
        dict(config=torch.ones(60, 60)),
        TypeError,
        "config: expected a PSAConfig as the fourth argument, got a tensor; if it is the mask",
    ),
    "name as config": (dict(config="psa_balanced"), TypeError, "config: expected a PSAConfig, got str; load_preset"),
    "dict as config": (dict(config={"block_m": 32}), TypeError, "config: expected a PSAConfig, got dict"),
    "dropout": (dict(dropout_p=0.1), ValueError, "dropout_p: expected 0.0, got 0.1"),
    "words as dropout": (dict(dropout_p="none"), TypeError, "dropout_p: expected"),
    "nan scale": (dict(scale=float("nan")), ValueError, "scale: expected a finite number"),
    "tensor as scale": (dict(scale=torch.tensor(0.1)), ValueError, "scale: expected a finite number"),
    "bool scale": (dict(scale=True), ValueError, "scale: expected a finite number"),
    "words as causal": (dict(is_causal="False"), TypeError, "is_causal: expected True or False, got str"),
    "causal with a grid": (
        dict(config=PSAConfig(), grid=(3, 4, 5), is_causal=True),
        ValueError,
        "is_causal: a causal mask needs tokens in their own order",
    ),
    "causal with one of the two masks": (
        dict(config=SMALL.replace(attn_impl="new_mask_type"), is_causal=True),
        ValueError,
        "'new_mask_type' has no causal mask",
    ),
    "implementation": (dict(impl="cuda"), ValueError, "impl: expected 'auto' or one of"),
    "seed as generator": (dict(generator=42), TypeError, "generator: expected a torch.Generator or None, got int"),
    "bool prefix": (dict(prefix_tokens=True), TypeError, "prefix_tokens: expected an int, got bool"),
    "negative prefix": (dict(prefix_tokens=-1), ValueError, "prefix_tokens: expected 0 to 60"),
    "prefix": (dict(prefix_tokens=61), ValueError, "prefix_tokens: expected 0 to 60, the number of tokens, got 61"),
    "grid of floats": (dict(grid=(3.0, 4, 5)), TypeError, "grid: expected three positive ints"),
    "number as grid": (dict(grid=60), TypeError, "grid: expected three positive ints"),
    "negative grid": (dict(grid=(-3, -4, 5)), ValueError, "grid: expected three positive ints"),
    "other grid": (dict(grid=(3, 4, 6)), ValueError, "grid: expected frames * height * width + prefix_tokens = 60"),
    "grid of other keys": (
        dict(k=Q[:, :, :40], v=Q[:, :, :40], grid=(3, 4, 5)),
        ValueError,
        "= 40, the tokens of k, got 3 * 4 * 5 + 0 = 60",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), list(MALFORMED.values()), ids=list(MALFORMED))
def test_malformed_arguments_are_named(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        psa_attention(**{"q": Q, "k": Q, "v": Q, "config": SMALL} | change)
