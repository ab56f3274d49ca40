"""The masks that models make for `psa`: none where the lengths say it all, padding by key, else SDPA's."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.masking_utils import create_causal_mask

from psa_triton.integrations.transformers import register
from psa_triton.integrations.transformers.masks import PADDING, causal_mask, filled_keys

register()


def config(implementation, **more):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 16}
    return LlamaConfig(**shape, **more, attn_implementation=implementation)


def filled(cache, tokens):
    if tokens:
        cache.update(torch.zeros(1, 1, tokens, 16), torch.zeros(1, 1, tokens, 16), 0)
    return cache


def make_mask(implementation, queries, past, *, room=None, padding=None):
    """The mask of a forward of `queries` tokens on a cache of `past` ones, with `room` for so many if it is static."""
    used = config(implementation)
    cache = DynamicCache() if room is None else StaticCache(config=used, max_cache_len=room)
    batch = 1 if padding is None else len(padding)
    return create_causal_mask(used, torch.zeros(batch, queries, 16), padding, filled(cache, past))


@pytest.mark.parametrize(("queries", "past"), [(20, 0), (1, 30)], ids=["whole", "decode"])
@pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask-of-ones"])
def test_plain_prefill_needs_none(queries, past, padded):
    ones = torch.ones(1, queries + past, dtype=torch.long) if padded else None
    assert make_mask("psa", queries, past, padding=ones) is None


def test_static_cache_tells_how_far_it_is_filled_without_memory():
    mask = make_mask("psa", 20, 0, room=64)
    assert mask is not None and mask.dtype == torch.bool
    assert mask.shape == (1, 1, 20, 20)
    assert mask.untyped_storage().nbytes() == 1
    assert make_mask("psa", 20, 0, room=20) is None


@pytest.mark.parametrize("room", [None, 64, 50])
@pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask-of-ones"])
def test_a_later_chunk_says_that_it_is_causal_without_memory(room, padded):
    ones = torch.ones(1, 50, dtype=torch.long) if padded else None
    mask = make_mask("psa", 20, 30, room=room, padding=ones)
    assert mask is not None and mask.dtype == PADDING
    assert mask.shape == (1, 1, 20, 50)
    assert mask.stride() == (1, 1, 0, 0), "one number"


def test_decoding_on_a_static_cache_has_a_mask_of_its_own():
    mask, expected = (make_mask(name, 1, 30, room=64) for name in ("psa", "sdpa"))
    assert mask is not None and expected is not None
    assert torch.equal(mask, expected) and mask.sum() == 31


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("queries", "past", "room"), [(20, 0, None), (20, 30, None), (20, 30, 64), (1, 30, 64)])
def test_padding_is_told_key_by_key(side, queries, past, room):
    padding = torch.ones(2, queries + past, dtype=torch.long)
    padding[1, slice(0, 3) if side == "left" else slice(-3, None)] = 0
    assert_same_keys_seen(queries, past, room, padding)


def test_a_mask_shorter_than_the_tokens_counts_the_rest_as_padding():
    assert_same_keys_seen(20, 30, None, torch.ones(1, 20, dtype=torch.long))


def assert_same_keys_seen(queries, past, room, padding):
    """What `psa` makes of a mask, and of the lengths, is what SDPA's mask says."""
    mask, expected = (make_mask(name, queries, past, room=room, padding=padding) for name in ("psa", "sdpa"))
    assert mask is not None and expected is not None
    keys = torch.zeros(len(padding), 1, room or queries + past, 16)
    kept, _, rest, key_mask = filled_keys(keys, keys, mask)
    if queries == 1 and room is not None:  # decoding on a static cache
        assert key_mask is None and torch.equal(mask, expected)
        return
    assert rest is None and key_mask is not None
    assert mask.untyped_storage().nbytes() == key_mask.numel() * mask.element_size()
    assert kept.shape[2] == key_mask.shape[1] == queries + past
    seen = key_mask[:, None, None] & causal_mask(queries, queries + past, key_mask.device)
    assert torch.equal(seen, expected[..., : queries + past])
    assert not expected[..., queries + past :].any()


def test_bidirectional_spans_are_masked_as_for_sdpa():
    spans = torch.tensor([[-1] * 4 + [0] * 6 + [-1] * 4])
    mask, expected = (
        create_causal_mask(config(name), torch.zeros(1, 14, 16), None, None, block_sequence_ids=spans)
        for name in ("psa", "sdpa")
    )
    assert mask is not None and expected is not None
    assert torch.equal(mask, expected)
    assert mask[0, 0, 4, 9]
