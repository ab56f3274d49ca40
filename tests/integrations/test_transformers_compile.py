"""`torch.compile` of models whose attention is `psa`."""

import small_language_models as small
import torch

from psa_triton import PSAConfig
from psa_triton.integrations.transformers import apply_psa

SPARSE = PSAConfig(
    block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 0: (0.3, 1)}, importance="antidiagonal", use_rearrange=False
)


@torch.no_grad()
def test_compiled_models_run_and_count_the_same():
    model = small.make_model(small.llama)
    inputs = small.text_inputs()
    dense = model(**inputs).logits
    with apply_psa(model, SPARSE) as handle:
        expected = model(**inputs).logits
        assert (expected - dense).abs().max() > 0.01
        handle.reset()
        found = torch.compile(model, backend="aot_eager")(**inputs).logits
        assert handle.stats().summary.sparse_calls == 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_handle_the_whole_prefill_compiles_to_one_graph():
    model = small.make_model(small.llama)
    inputs = small.text_inputs(900)
    dense = model(**inputs).logits
    model.set_attn_implementation("psa")
    expected = model(**inputs).logits
    assert (expected - dense).abs().max() > 0.01
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
