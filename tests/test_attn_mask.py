"""A mask that `scaled_dot_product_attention` takes: key padding becomes a key mask, everything else is an error."""

import math

import pytest
import torch
import torch.nn.functional as F

from psa_triton import PSAAttention, PSAConfig, psa_attention
from psa_triton.attn_mask import as_key_mask

FULL = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0.0, 1.0)})
KEEP = torch.arange(60)[None] < torch.tensor([[60], [37]])


def tensors(keys=60):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, n, 16, generator=generator) for heads, n in ((4, 50), (2, keys), (2, keys))]


def additive(keep, dtype=torch.float32, least=-math.inf):
    return torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, least)


@pytest.mark.parametrize(
    "mask",
    [
        KEEP[:, None, None],
        KEEP[:, None, None].expand(2, 4, 50, 60),
        KEEP[:, None, None].repeat(1, 4, 50, 1),
        KEEP[:, None, None].repeat(1, 1, 50, 1),
        additive(KEEP)[:, None, None],
        additive(KEEP, torch.bfloat16, torch.finfo(torch.bfloat16).min)[:, None, None].expand(2, 1, 50, 60),
        additive(KEEP, torch.float16, torch.finfo(torch.float16).min)[:, None, None],
        additive(KEEP, least=-1e9)[:, None, None],
        additive(KEEP, least=-1e4)[:, None, None],
    ],
    ids=["batch", "expanded", "full", "queries", "inf", "bfloat16", "float16", "1e9", "1e4"],
)
def test_key_padding_in_every_form(mask):
    q, k, v = tensors()
    assert torch.equal(as_key_mask(mask, q, k), KEEP)
    out = psa_attention(q, k, v, FULL, attn_mask=mask, enable_gqa=True)
    assert torch.equal(out, psa_attention(q, k, v, FULL, key_mask=KEEP))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype) if mask.dtype != torch.bool else mask, enable_gqa=True)  # fmt: skip  # noqa: E501
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(60,), (1, 60), (1, 1, 60), (1, 1, 1, 60), (1, 50, 60)], ids=str)
def test_the_same_keys_for_the_whole_batch(shape):
    q, k, _ = tensors()
    mask = (torch.arange(60) % 3 > 0).expand(shape)
    assert torch.equal(as_key_mask(mask, q, k), (torch.arange(60) % 3 > 0).expand(2, 60))
    everything = as_key_mask(torch.ones(1, 1, dtype=torch.bool), q, k)
    assert everything.shape == (2, 60) and everything.all()


@pytest.mark.parametrize("shape", [(1, 0, 60), (2, 4, 0, 60)], ids=str)
def test_a_mask_of_no_queries(shape):
    q, k, v = tensors()
    assert psa_attention(q[:, :, :0], k, v, FULL, attn_mask=torch.ones(shape, dtype=torch.bool)).shape == (2, 4, 0, 16)


def test_together_with_a_key_mask_and_is_causal():
    q, k, v = tensors()
    other = torch.arange(60)[None].expand(2, -1) >= 5
    out = psa_attention(q, k, v, FULL, attn_mask=KEEP[:, None, None], key_mask=other, is_causal=True)
    assert torch.equal(out, psa_attention(q, k, v, FULL, key_mask=KEEP & other, is_causal=True))


def test_in_a_graph():
    torch._dynamo.reset()  # other tests' shapes would make these dynamic
    q, k, v = tensors()
    compiled = torch.compile(PSAAttention(FULL), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, attn_mask=KEEP[:, None, None]), psa_attention(q, k, v, FULL, key_mask=KEEP))
    with pytest.raises(ValueError, match="attn_mask: expected a mask that leaves out the same keys"):
        compiled(q, k, v, attn_mask=torch.ones(50, 60, dtype=torch.bool).tril()[None, None])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ("causal", TypeError, "attn_mask: expected a tensor or None, got str"),
        (
            torch.ones(1, 60).int(),
            TypeError,
            r"expected bool, .*, got torch.int32; convert ones and zeros with .bool()",
        ),
        (torch.ones(50, 60, dtype=torch.bool).tril(), ValueError, "pass is_causal=True, with key_mask for padding"),
        (KEEP.new_ones(4, 1, 60).index_fill(0, torch.tensor(1), False), ValueError, "for every head and query"),
        (torch.full((1, 60), 0.5), ValueError, "expected 0 for keys that are there and -inf"),
        (torch.full((1, 60), math.nan), ValueError, "attn_mask: expected"),
        (torch.full((1, 60), math.inf), ValueError, "attn_mask: expected 0 for keys"),
        (KEEP[:, None], ValueError, r"broadcasts with .* = \(2, 4, 50, 60\), got \(2, 1, 60\)"),
        (KEEP[:, None, None, :50], ValueError, r"got \(2, 1, 1, 50\)"),
        (KEEP[None, :, None, None], ValueError, r"got \(1, 2, 1, 1, 60\)"),
        (torch.ones(1, 60, dtype=torch.bool, device="meta"), ValueError, "expected the device of k, cpu, got meta"),
    ],
    ids=["str", "int", "causal", "heads", "bias", "nan", "inf", "no queries", "short", "5 dims", "device"],
)
def test_errors(mask, error, message):
    q, k, v = tensors()
    with pytest.raises(error, match=message):
        psa_attention(q, k, v, FULL, attn_mask=mask)
