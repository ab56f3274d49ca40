"""What an installed release must do, in an environment with nothing of the checkout: `python -P tests/smoke.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from transformers import LlamaConfig, LlamaForCausalLM

import psa_triton
from psa_triton import PSAConfig, apply_psa, psa_attention
from psa_triton.presets import load_presets_file

EVERYTHING = PSAConfig(mask_ratios={1: (0.0, 1.0)}, warmup_steps=0)


def operator() -> None:
    """The fast implementation against the definition, with gradients."""
    q, k, v = torch.randn(3, 1, 2, 1000, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grads = []
    for impl in ("reference", "cpu"):
        out = psa_attention(q, k, v, PSAConfig(), grid=(10, 10, 10), impl=impl)
        grads.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def diffusion_transformer() -> None:
    """Reading everything is the model's own output, and detaching gives the model back."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, num_layers=2, ffn_dim=32, text_dim=16, freq_dim=32
    ).eval()
    latents, text = torch.randn(1, 16, 4, 32, 32), torch.randn(1, 7, 16)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(latents, torch.tensor([500]), text, return_dict=False)[0]

    dense = forward()
    with apply_psa(model, EVERYTHING, min_tokens=0) as psa:
        torch.testing.assert_close(forward(), dense, rtol=1e-3, atol=1e-4)
        assert psa.stats().summary.sparse_calls > 0
    assert torch.equal(forward(), dense)


def language_model() -> None:
    """A prompt runs sparse, and reading everything changes nothing."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)).eval()
    tokens = torch.randint(0, 100, (1, 600))
    with torch.no_grad():
        dense = model(tokens).logits
        with apply_psa(model, EVERYTHING.replace(use_rearrange=False), min_tokens=0) as psa:
            torch.testing.assert_close(model(tokens).logits, dense, rtol=1e-3, atol=1e-4)
            assert psa.stats().summary.sparse_calls > 0


if __name__ == "__main__":
    assert Path(psa_triton.__file__).is_relative_to(sys.prefix), f"{psa_triton.__file__} is not the installed package"
    assert load_presets_file().sections
    for check in (operator, diffusion_transformer, language_model):
        check()
        print(f"{check.__name__}: right")
