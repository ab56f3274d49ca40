"""What runs dense though the model names `psa`: with SDPA's results, and a reason that can be read."""

import pytest
import small_language_models as small
import torch
from small_language_models import logits
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.logging import warning_once

from psa_triton import PSAConfig
from psa_triton.integrations.transformers import apply_psa
from psa_triton.integrations.transformers.attention import psa_attention_forward

SPARSE = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.2), 0: (0.2, 1)}, use_rearrange=False)
NOTHING = SPARSE.replace(mask_ratios={0: (0, 1)}, mask_mode="topk")


def reasons(model, inputs, **options):
    """Why what ran dense, where it all did and gave the same bits as before."""
    dense = logits(model, inputs)
    with apply_psa(model, SPARSE, **options) as handle:
        assert torch.equal(logits(model, inputs), dense)
        summary = handle.stats().summary
    assert summary.sparse_calls == 0 and summary.run_density == 1
    return summary.dense_reasons


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (small.mistral, {"sliding window": 2}),
        (small.gemma2, {"sliding window": 1, "softcap": 1}),
        (small.gpt_oss, {"sliding window": 1, "attention sinks": 1}),
        (small.bigbird_pegasus, {"not causal": 2}),
    ],
    ids=["mistral", "gemma2", "gpt-oss", "bigbird-pegasus"],
)
def test_attention_that_psa_has_no_equivalent_of(make, expected):
    assert reasons(small.make_model(make), small.text_inputs()) == expected


@pytest.mark.parametrize("make", [small.mistral, small.gemma2, small.gpt_oss], ids=["mistral", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_such_attention_on_a_cache(make, kind):
    """The masks of windows, and the frontier of chunks, are those that the model makes for its own attention."""
    model = small.make_model(make)
    options = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}
    options |= {"prefill_chunk_size": 100} if kind == "dynamic" else {"cache_implementation": "static"}
    inputs = small.text_inputs() | {"attention_mask": torch.ones(1, 300, dtype=torch.long)}
    dense = model.generate(**inputs, **options, disable_compile=True)
    with apply_psa(model, SPARSE) as handle:
        assert torch.equal(model.generate(**inputs, **options, disable_compile=True), dense)
        assert handle.stats().summary.sparse_calls == 0


def test_layers_without_a_window_run_sparse_beside_those_with_one():
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64, "use_sliding_window": True}
    model = small.make_model(lambda: small.qwen2(**layers))
    with apply_psa(model, SPARSE) as handle:
        logits(model, small.text_inputs())
        found = {record.layer: record.reason for record in handle.stats().records}
    assert found == {0: "sliding window", 1: None}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (small.llama, {"dense_layers": [0, 1]}, {"dense layer": 2}),
        (small.gemma2, {}, {"sliding window": 1, "softcap": 1}),
        (small.gpt_oss, {}, {"sliding window": 1, "attention sinks": 1}),
    ],
    ids=["llama", "gemma2", "gpt-oss"],
)
def test_padded_batch_that_runs_dense(side, make, options, expected):
    inputs = small.text_inputs(batch=2)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, slice(0, 40) if side == "left" else slice(-40, None)] = 0
    assert reasons(small.make_model(make), inputs | {"attention_mask": mask}, **options) == expected


def test_a_mask_of_ones_own_runs_dense():
    """Also one that hides the same keys from all queries: it says nothing of a causal one."""
    model, inputs = small.make_model(small.llama), small.text_inputs()
    full = torch.ones(1, 1, 300, 300, dtype=torch.bool)
    for mask in (full.tril(-1).logical_or(torch.eye(300).bool()), full, full[:, :, :1]):
        assert reasons(model, inputs | {"attention_mask": mask}) == {"attention mask": 2}


def test_packed_sequences():
    positions = torch.cat([torch.arange(150), torch.arange(150)])[None]
    inputs = small.text_inputs() | {"position_ids": positions, "use_cache": False}
    assert reasons(small.make_model(small.llama), inputs) == {"attention mask": 2}


def test_dropout_in_training():
    model = small.make_model(lambda: small.llama(attention_dropout=0.5)).train()
    with apply_psa(model, SPARSE) as handle:
        logits(model, small.text_inputs())
        assert handle.stats().summary.dense_reasons == {"dropout": 2}
        handle.reset()
        model.eval()
        logits(model, small.text_inputs())
        assert handle.stats().summary.sparse_calls == 2


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        (95, {}, {"fewer than 96 tokens": 2}),
        (96, {}, {}),
        (300, {"min_tokens": 301}, {"fewer than 301 tokens": 2}),
        (300, {"min_tokens": 300}, {}),
        (40, {"min_tokens": 0}, {}),
        (31, {"min_tokens": 0}, {"fewer than 32 queries": 2}),
        (300, {"dense_layers": [1]}, {"dense layer": 1}),
    ],
    ids=lambda x: str(x),
)
def test_short_prompts_and_chosen_layers(tokens, options, expected):
    model = small.make_model(small.llama)
    with apply_psa(model, SPARSE, **options) as handle:
        logits(model, small.text_inputs(tokens))
        summary = handle.stats().summary
    assert summary.dense_reasons == expected
    assert summary.sparse_calls == 2 - sum(expected.values())


def test_attention_weights_are_none_and_that_is_told(caplog):
    warning_once.cache_clear()
    model = small.make_model(small.llama)
    with apply_psa(model, SPARSE):
        assert model(**small.text_inputs(), output_attentions=True).attentions == ()
    assert caplog.messages == [
        "output_attentions: `psa` computes no attention weights; take `eager` attention for them"
    ]


class TestOneCall:
    """Calls that none of the models above makes, to the registered function itself."""

    @staticmethod
    def tensors(queries=128, keys=128, dim=16, value_dim=16):
        generator = torch.Generator().manual_seed(0)
        shapes = ((1, 4, queries, dim), (1, 2, keys, dim), (1, 2, keys, value_dim))
        return [torch.randn(shape, generator=generator) for shape in shapes]

    @staticmethod
    def module(**attributes):
        module = nn.Module()
        for name, value in {"is_causal": True, "num_key_value_groups": 2, "training": False, **attributes}.items():
            setattr(module, name, value)
        return module

    def same_as_sdpa(self, tensors, mask=None, **options):
        module = self.module()
        ours, weights = psa_attention_forward(module, *tensors, mask, psa_config=NOTHING, **options)
        assert weights is None
        return torch.equal(ours, sdpa_attention_forward(module, *tensors, mask, **options)[0])

    def test_heads_that_the_operator_cannot_do(self):
        assert self.same_as_sdpa(self.tensors(512, 512, dim=12, value_dim=12))
        assert self.same_as_sdpa(self.tensors(512, 512, value_dim=24))

    def test_not_causal(self):
        assert self.same_as_sdpa(self.tensors(512, 512), is_causal=False)
        assert self.same_as_sdpa(self.tensors(512, 700), is_causal=False)

    def test_position_bias(self):
        bias = torch.randn(1, 4, 512, 512, generator=torch.Generator().manual_seed(1))
        assert self.same_as_sdpa(self.tensors(512, 512), position_bias=bias)

    def test_additive_mask(self):
        bias = torch.randn(1, 1, 512, 512, generator=torch.Generator().manual_seed(1))
        assert self.same_as_sdpa(self.tensors(512, 512), bias)

    def test_a_mask_of_integers_is_none_of_ours(self):
        mask = torch.ones(1, 1, 512, 512, dtype=torch.int8).tril()
        with pytest.raises(RuntimeError, match="Expected attn_mask dtype to be bool or float"):
            psa_attention_forward(self.module(), *self.tensors(512, 512), mask, psa_config=NOTHING)

    def test_otherwise_it_would_have_been_sparse(self):
        assert not self.same_as_sdpa(self.tensors(512, 512))

    @pytest.mark.parametrize(
        ("extras", "message"),
        [
            ({"softcap": 50.0}, "leaves softcaps and attention sinks to a model's eager attention, and"),
            ({"sinks": torch.zeros(1, 4, 128, 1)}, "leaves softcaps and attention sinks to a model's eager attention"),
            ({"indices": torch.zeros(1, 128, 16).long()}, "cannot read the keys that Module chose for a kernel of its"),
        ],
        ids=["softcap", "sinks", "indices"],
    )
    def test_what_sdpa_cannot_do_either(self, extras, message):
        with pytest.raises(ValueError, match=message):
            psa_attention_forward(self.module(), *self.tensors(), **extras)
